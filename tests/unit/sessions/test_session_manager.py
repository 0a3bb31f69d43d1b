"""The manager: parts in their order, whatever fails in the middle; and its two facades."""

import msgspec
import pytest

from events.errors import InvalidArguments, InvalidName, InvalidSelector, SessionClosed, SessionNotFound
from events.ids import HubName, SessionId
from service.log.memory import MemoryEventLog
from service.sessions.manager import SessionManager, session_manager


class Part:
    """A registry that only writes down when it was started and stopped, and fails on demand."""

    def __init__(self, name: str, said: list[str], *, fail_at: tuple[str, ...] = ()) -> None:
        self.name = name
        self.said = said
        self.fail_at = fail_at

    async def initialize(self) -> None:
        self._say("initialize")

    async def shutdown(self) -> None:
        self._say("shutdown")

    def _say(self, what: str) -> None:
        self.said.append(f"{what} {self.name}")
        if what in self.fail_at:
            raise RuntimeError(f"{self.name} cannot {what}")


def parts(said: list[str], **fail_at: tuple[str, ...]) -> SessionManager:
    sessions, groups, router = (
        Part(name, said, fail_at=fail_at.get(name, ())) for name in ("sessions", "groups", "router")
    )
    return SessionManager(HubName("chat"), sessions, groups, router)


async def test_sessions_then_groups_then_router_and_back():
    said: list[str] = []
    manager = parts(said)
    await manager.initialize()
    assert said == ["initialize sessions", "initialize groups", "initialize router"]
    said.clear()
    await manager.shutdown()
    assert said == ["shutdown router", "shutdown groups", "shutdown sessions"]


@pytest.mark.parametrize(
    ("failing", "then"),
    [
        ("sessions", []),
        ("groups", ["shutdown sessions"]),
        ("router", ["shutdown groups", "shutdown sessions"]),
    ],
)
async def test_what_was_ready_is_shut_down_when_a_later_part_fails(failing, then):
    said: list[str] = []
    with pytest.raises(RuntimeError, match=f"{failing} cannot initialize"):
        await parts(said, **{failing: ("initialize",)}).initialize()
    assert [each for each in said if each.startswith("shutdown")] == then


async def test_a_part_that_cannot_even_be_shut_down_hides_neither_the_first_failure_nor_the_others():
    said: list[str] = []
    with pytest.raises(RuntimeError, match="router cannot initialize") as caught:
        await parts(said, router=("initialize",), groups=("shutdown",)).initialize()
    assert said[-1] == "shutdown sessions"
    assert "groups cannot shutdown" in "".join(caught.value.__notes__)


async def test_every_part_is_shut_down_whatever_the_others_do():
    said: list[str] = []
    with pytest.raises(ExceptionGroup) as caught:
        await parts(said, router=("shutdown",), sessions=("shutdown",)).shutdown()
    assert said == ["shutdown router", "shutdown groups", "shutdown sessions"]
    assert [str(each) for each in caught.value.exceptions] == ["router cannot shutdown", "sessions cannot shutdown"]


async def test_without_a_log_it_is_local_and_in_memory():
    one, another = session_manager("chat"), session_manager("chat")
    await one.initialize()
    assert (await one.router.all("say", 1)).outcome == "accepted"
    assert (await one.sessions.count()).position.sequence == 1
    assert (await another.sessions.count()).position.sequence == 0
    await one.shutdown()


def test_the_hub_is_checked():
    with pytest.raises(InvalidName):
        session_manager("Not a hub")


async def test_hubs_do_not_see_each_other(log, manager, opened):
    ann = await opened("lobby")
    games = session_manager("games", log)
    assert not await games.sessions.exists(ann)
    assert (await games.groups.names()).value == ()
    assert (await games.router.client(ann, "say")).outcome == "not_found"
    await games.router.all("say")
    assert (await manager.sessions.count()).value == 1


# ---- the groups of one session


async def test_the_facade_is_bound_to_its_session(manager, opened):
    ann, bob = await opened(), await opened("lobby")
    groups = manager.groups_of(ann)
    assert await groups.names() == ()
    assert await groups.add("lobby", "den", "attic") == ("attic", "den", "lobby")
    assert await groups.add() == ("attic", "den", "lobby")
    assert await groups.remove("den", "nowhere") == ("attic", "lobby")
    assert await groups.names() == ("attic", "lobby")
    assert await manager.groups_of(bob).names() == ("lobby",)


async def test_the_facade_knows_what_others_changed(manager, other, opened):
    ann = await opened("lobby")
    await other.groups.remove(ann, "lobby")
    assert await manager.groups_of(ann).names() == ()


async def test_the_facade_of_nobody(manager, opened):
    nobody = manager.groups_of(SessionId("nobody"))
    for doing in (nobody.names, lambda: nobody.add("g"), lambda: nobody.remove("g")):
        with pytest.raises(SessionNotFound):
            await doing()
    ann = await opened("lobby")
    await manager.sessions.unregister(ann)
    with pytest.raises(SessionNotFound):
        await manager.groups_of(ann).names()
    with pytest.raises(SessionClosed):
        await manager.groups_of(ann).add("lobby")


# ---- calls in the name of a caller

MODES = [
    ("caller", (), '{"to":"caller"}', "s.{me}.inbox"),
    ("all", (), '{"to":"all"}', "all"),
    ("others", (), '{"to":"others"}', "all"),
    ("all_except", (["x", "y"],), '{"to":"allExcept","sessions":["x","y"]}', "all"),
    ("client", ("{me}",), '{"to":"client","session":"{me}"}', "s.{me}.inbox"),
    ("clients", (["x", "y"],), '{"to":"clients","sessions":["x","y"]}', "many"),
    ("group", ("g",), '{"to":"group","group":"g"}', "g.g"),
    ("group", ("g", ["x"]), '{"to":"group","group":"g","except":["x"]}', "g.g"),
    ("groups", (["g", "h"],), '{"to":"groups","groups":["g","h"]}', "many"),
    ("groups", (["g", "h"], ["x"]), '{"to":"groups","groups":["g","h"],"except":["x"]}', "many"),
    ("group_except_caller", ("g",), '{"to":"groupExceptCaller","group":"g"}', "g.g"),
    ("groups_except_caller", (["g", "h"],), '{"to":"groupsExceptCaller","groups":["g","h"]}', "many"),
    ("user_sessions", ("ann",), '{"to":"user","user":"ann"}', "u.ann"),
]
RELATIVE = {"caller", "others", "group_except_caller", "groups_except_caller"}


def recipients(proxy, mode: str, arguments: tuple, me: str):
    found = getattr(proxy, mode)
    return found(*(each.format(me=me) if isinstance(each, str) else each for each in arguments)) if arguments else found


@pytest.mark.parametrize(("mode", "arguments", "selector", "subject"), MODES, ids=[f"{m[0]}{len(m[1])}" for m in MODES])
async def test_every_mode_as_a_session(manager, opened, written, mode, arguments, selector, subject):
    me = await opened(user="ann")
    said = await recipients(manager.as_session(me, "ann"), mode, arguments, me).send("say", "hi", 2, ttl_ms=5)
    [(where, envelope, event)] = await written.calls()
    assert said.outcome == ("sent" if mode == "client" else "accepted")
    assert (said.invocation_id, str(said.position)) == (envelope.id, "mema.0-2")
    assert where == subject.format(me=me)
    assert msgspec.json.encode(event.selector).decode() == selector.replace("{me}", me)
    assert (event.caller, envelope.actor, event.ttl_ms, bytes(event.arguments)) == (me, f"session:{me}", 5, b'["hi",2]')


@pytest.mark.parametrize(("mode", "arguments", "selector", "subject"), MODES, ids=[f"{m[0]}{len(m[1])}" for m in MODES])
async def test_every_mode_as_a_backend(manager, opened, written, mode, arguments, selector, subject):
    me = await opened()
    who = recipients(manager.as_backend("system:jobs"), mode, arguments, me)
    if mode in RELATIVE:
        with pytest.raises(InvalidSelector):
            await who.send("say")
        assert await written.calls() == []
        return
    await who.send("say")
    [(where, envelope, event)] = await written.calls()
    assert (where, event.caller, envelope.actor) == (subject.format(me=me), None, "system:jobs")


async def test_exclusions_of_the_caller_are_in_the_event(manager, opened, written):
    me = await opened()
    proxy = manager.as_session(me)
    for who in (proxy.others, proxy.group_except_caller("g"), proxy.groups_except_caller(["g", "h"])):
        await who.send("say")
    assert [event.without for _, _, event in await written.calls()] == [(me,)] * 3


async def test_a_session_in_two_groups_is_named_by_one_event(manager, opened, written):
    await opened("g", "h")
    await manager.as_backend().groups(["g", "h", "g"]).send("say")
    [(where, _, event)] = await written.calls()
    assert (where, event.groups) == ("many", ("g", "h"))


async def test_keys_are_the_users(manager, opened, written):
    ann, again, bob = await opened(), await opened(), await opened()
    first = await manager.as_session(ann, "ann").all.send("say", key="k")
    assert await manager.as_session(again, "ann").all.send("say", key="k") == first
    assert await manager.as_session(bob, "bob").all.send("say", key="k") != first
    assert await manager.as_session(bob).all.send("say", key="k") != first
    assert await manager.as_backend().all.send("say", key="k") != first
    assert len(await written.calls()) == 4


async def test_arguments_that_are_no_json(manager, written):
    with pytest.raises(InvalidArguments):
        await manager.as_backend().all.send("say", object())
    assert await written.all() == []


def test_the_memory_log_is_the_default_only_where_none_is_given(log):
    assert isinstance(log, MemoryEventLog)
    assert session_manager("chat", log).router._log is log
