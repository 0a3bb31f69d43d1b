"""The managers of a process: one per hub, made once, and let go when nobody needs them."""

import asyncio

import pytest

from events import selector
from events.errors import SessionClosed, SessionNotFound
from events.ids import GroupName, HubName, SessionId
from service.log.memory import MemoryEventLog
from service.sessions import hubs as module
from service.sessions.hubs import Hubs
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession

CHAT, GAMES = HubName("chat"), HubName("games")


class Watched:
    """A factory that counts, and fails on demand."""

    def __init__(self, log: MemoryEventLog) -> None:
        self.log = log
        self.made: list[HubName] = []
        self.shut_down: list[HubName] = []
        self.failures: list[Exception] = []
        self.failing_shutdowns: set[HubName] = set()

    def __call__(self, hub: HubName) -> Manager:
        manager = session_manager(hub, self.log)
        initialize, shutdown = manager.initialize, manager.shutdown

        async def counted_initialize() -> None:
            self.made.append(hub)
            await asyncio.sleep(0)
            if self.failures:
                raise self.failures.pop()
            await initialize()

        async def counted_shutdown() -> None:
            self.shut_down.append(hub)
            if hub in self.failing_shutdowns:
                raise RuntimeError(f"{hub} cannot")
            await shutdown()

        manager.initialize, manager.shutdown = counted_initialize, counted_shutdown  # type: ignore[method-assign]
        return manager


@pytest.fixture
def factory(log: MemoryEventLog) -> Watched:
    return Watched(log)


@pytest.fixture
def hubs(log: MemoryEventLog, factory: Watched) -> Hubs:
    return Hubs(log, factory)


async def test_a_hub_has_one_manager_however_many_ask_at_once(hubs, factory):
    found = await asyncio.gather(*(hubs.manager(hub) for hub in [CHAT, GAMES] * 10))
    assert len({id(manager) for manager in found}) == 2
    assert sorted(factory.made) == [CHAT, GAMES]


async def test_a_manager_that_could_not_be_made_is_tried_again(hubs, factory):
    factory.failures = [RuntimeError("not today")]
    both = await asyncio.gather(hubs.manager(CHAT), hubs.manager(CHAT), return_exceptions=True)
    assert [str(each) for each in both] == ["not today"] * 2
    assert (await hubs.manager(CHAT)).hub == CHAT
    assert factory.made == [CHAT, CHAT]


async def test_who_gives_up_waiting_does_not_take_the_manager_from_others(hubs, factory):
    impatient, patient = asyncio.ensure_future(hubs.manager(CHAT)), asyncio.ensure_future(hubs.manager(CHAT))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).hub == CHAT
    assert factory.made == [CHAT]
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_every_manager_is_shut_down_even_when_one_fails(hubs, factory):
    for hub in (CHAT, GAMES):
        await hubs.manager(hub)
    factory.failing_shutdowns = {CHAT}
    with pytest.raises(ExceptionGroup, match="not every hub"):
        await hubs.shutdown()
    assert factory.shut_down == [CHAT, GAMES]


async def test_shutting_down_passes_over_what_never_came_to_be(hubs, factory):
    await hubs.manager(GAMES)
    factory.failures = [RuntimeError("not today")]
    asking = asyncio.ensure_future(hubs.manager(CHAT))
    await asyncio.sleep(0)
    await hubs.shutdown()
    assert factory.shut_down == [GAMES]
    with pytest.raises(RuntimeError):
        await asking


async def test_hubs_without_sessions_here_make_room(hubs, factory, monkeypatch):
    monkeypatch.setattr(module, "IDLE_HUBS_MAX", 3)
    busy = await hubs.manager(CHAT)
    assert await busy.sessions.register(NewSession(SessionId("s"), "c"))
    factory.failing_shutdowns = {HubName("h0")}
    for number in range(6):
        await hubs.manager(HubName(f"h{number}"))
    assert factory.shut_down == ["h0", "h1", "h2", "h3"]
    assert await hubs.manager(CHAT) is busy


async def test_who_was_asked_for_last_makes_room_last(hubs, factory, monkeypatch):
    monkeypatch.setattr(module, "IDLE_HUBS_MAX", 2)
    for hub in (CHAT, GAMES, CHAT, HubName("new")):
        await hubs.manager(hub)
    assert factory.shut_down == [GAMES]


async def test_a_new_hub_looks_at_few_of_the_others(hubs, monkeypatch):
    """Each of thousands of hubs may have a session here: they are not all asked, over and over."""
    monkeypatch.setattr(module, "IDLE_HUBS_MAX", 3)
    asked: list[HubName] = []
    for number in range(40):
        hub = HubName(f"h{number}")
        manager = await hubs.manager(hub)
        manager.sessions.local_sessions = lambda hub=hub: asked.append(hub) or (SessionId("s"),)
    assert len(asked) <= 37 * module.LOOKS_MAX
    assert {HubName(f"h{number}") for number in range(30)} <= {*asked}, "everybody's turn comes"


# ---- commands by hub


async def test_commands_answer_positions(hubs, log):
    manager = await hubs.manager(CHAT)
    ann = SessionId("ann")
    await manager.sessions.register(NewSession(ann, "c"))
    assert str(await hubs.join(CHAT, ann, [GroupName("g")], actor="user:admin")) == "mema.0-2"
    assert str(await hubs.join(CHAT, ann, [GroupName("g")], actor="user:admin")) == "mema.0-2"
    assert str(await hubs.leave(CHAT, ann, [GroupName("g")], actor="user:admin")) == "mema.0-3"
    said = await hubs.invoke(CHAT, selector.All(), "say", b"[]", actor="user:admin", key="k")
    assert (said.position, said.outcome) == ("mema.0-4", "accepted")
    assert str(await hubs.kick(CHAT, ann, actor="user:admin")) == "mema.0-5"
    assert str(await hubs.kick(CHAT, ann, actor="user:admin")) == "mema.0-5"
    last = await log.last("ev.0.chat.s.ann.log")
    assert last is not None
    assert b'"actor":"user:admin"' in last.payload
    assert b'"reason":"kicked"' in last.payload
    with pytest.raises(SessionClosed):
        await hubs.join(CHAT, ann, [GroupName("g")], actor="user:admin")


async def test_commands_on_nobody(hubs):
    nobody = SessionId("nobody")
    for doing in (
        hubs.kick(CHAT, nobody, actor="system:api"),
        hubs.join(CHAT, nobody, [GroupName("g")], actor="system:api"),
        hubs.leave(CHAT, nobody, [GroupName("g")], actor="system:api"),
    ):
        with pytest.raises(SessionNotFound):
            await doing


async def test_a_key_given_to_the_api_by_a_user_is_the_users(hubs):
    by_api = await hubs.invoke(CHAT, selector.All(), "say", b"[]", actor="user:ann", key="k")
    manager = await hubs.manager(CHAT)
    assert await manager.as_session(SessionId("s"), "ann").all.send("say", key="k") == by_api
    other = await hubs.invoke(CHAT, selector.All(), "say", b"[]", actor="system:api", key="k")
    assert other.invocation_id != by_api.invocation_id


async def test_positions_name_the_partition_of_the_hub():
    log = MemoryEventLog(8)
    hubs = Hubs(log, lambda hub: session_manager(hub, log))
    said = await hubs.invoke(CHAT, selector.All(), "say", b"[]", actor="system:api")
    assert said.position == "mema.2-1"
    manager = await hubs.manager(CHAT)
    await manager.sessions.register(NewSession(SessionId("s"), "c"))
    assert str(await hubs.kick(CHAT, SessionId("s"), actor="system:api")) == "mema.2-3"
    assert str((await manager.sessions.count()).position) == "mema.2-3"
