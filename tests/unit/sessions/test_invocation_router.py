"""Calls: one event on one subject, an outcome as of its position, keys, and one answer whatever happens."""

import asyncio
import gc

import pytest

from events import codec, selector, session
from events.envelope import NewEvent
from events.errors import (
    HublogError,
    Internal,
    InvalidArguments,
    InvalidName,
    InvalidOption,
    InvalidSelector,
    KeyReused,
    LogFull,
    LogUnavailable,
    OutcomeUnknown,
    PayloadTooLarge,
    TooManyTargets,
    UpgradeRequired,
)
from events.ids import EventId, HubName, keyed_id
from events.session import Attach, Close, Detach
from events.subjects import HubSubjects
from service.log.memory import MemoryEventLog
from service.sessions.manager import session_manager
from service.sessions.router import Call, Outcome
from tests.servers.event_logs import until


def call(to, *, caller=None, user=None, actor=None, arguments=b'["hi"]', **more) -> Call:
    actor = actor or (f"session:{caller}" if caller else "system:api")
    return Call(to, "say", arguments, actor=actor, caller=caller, user=user, **more)


async def outcome(router, request: Call) -> list[Outcome | HublogError]:
    """Everything that ``answer`` was called with, when all is quiet."""
    answers: list[Outcome | HublogError] = []
    first = router.submit(request, answers.append)
    if first is not None:
        await first
    for _ in range(20):
        await asyncio.sleep(0)
    return answers


MODES = [
    (selector.All(), "all", (), (), ()),
    (selector.Others(), "all", (), (), ("me",)),
    (selector.AllExcept(("b", "b", "a")), "all", (), (), ("b", "a")),
    (selector.Caller(), "s.me.inbox", (), (), ()),
    (selector.Clients(("a", "b", "a")), "many", ("a", "b"), (), ()),
    (selector.Clients(("a", "a")), "s.a.inbox", (), (), ()),
    (selector.Group("g.1", ("a",)), "g.~Zy4x", (), (), ("a",)),
    (selector.Groups(("g", "h", "g"), ("a",)), "many", (), ("g", "h"), ("a",)),
    (selector.GroupExceptCaller("g"), "g.g", (), (), ("me",)),
    (selector.GroupsExceptCaller(("g", "h")), "many", (), ("g", "h"), ("me",)),
    (selector.User("ann"), "u.ann", (), (), ()),
]


@pytest.mark.parametrize("mode", MODES, ids=[type(mode[0]).__name__ for mode in MODES])
async def test_every_call_is_one_event_with_targets_named_once(manager, written, mode):
    to, subject, sessions, groups, without = mode
    [said] = await outcome(manager.router, call(to, caller="me"))
    [(where, envelope, event)] = await written.calls()
    assert said == Outcome(envelope.id, "mema.0-1", "accepted")
    assert (where, event.sessions, event.groups, event.without) == (subject, sessions, groups, without)
    assert (event.selector, event.caller, envelope.actor) == (to, "me", "session:me")
    assert bytes(event.arguments) == b'["hi"]'


@pytest.mark.parametrize("to", [selector.Clients(()), selector.Groups(()), selector.Clients(("", "x" * 257))])
async def test_nobody_named_is_accepted_and_not_written(manager, written, to):
    [said] = await outcome(manager.router, call(to))
    assert isinstance(said, Outcome)
    assert (said.position, said.outcome) == (None, "accepted")
    assert said.invocation_id
    assert await written.all() == []


async def test_ids_are_made_here_on_every_path(manager, opened, detach, written):
    gone, away, here = await opened(), await opened(), await opened()
    await manager.sessions.unregister(gone)
    await detach(away)
    said = []
    for to in (*(mode[0] for mode in MODES), selector.Clients(())):
        said += await outcome(manager.router, call(to, caller="me"))
    for session_id in (gone, away, here, "nobody"):
        said += await outcome(manager.router, call(selector.Client(session_id)))
    ids = [each.invocation_id for each in said]
    assert len(set(ids)) == len(ids) == len(MODES) + 5
    assert {envelope.id for _, envelope, _ in await written.calls()} < set(ids)


# ---- one client


async def test_an_attached_client_is_sent_to(manager, opened, written):
    ann = await opened()
    [said] = await outcome(manager.router, call(selector.Client(ann)))
    [(where, envelope, _)] = await written.calls()
    assert said == Outcome(envelope.id, "mema.0-2", "sent")
    assert where == f"s.{ann}.inbox"


async def test_for_a_detached_client_the_call_is_queued(manager, opened, detach):
    ann = await opened()
    await detach(ann)
    [said] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(said, Outcome)
    assert (said.position, said.outcome) == ("mema.0-3", "queued")


@pytest.mark.parametrize("who", ["nobody", "", "x" * 300, "a.b", "*"])
async def test_an_unknown_client_is_not_found_and_nothing_is_written(manager, written, who):
    [said] = await outcome(manager.router, call(selector.Client(who)))
    assert isinstance(said, Outcome)
    assert (said.position, said.outcome) == (None, "not_found")
    assert await written.all() == []


async def test_a_closed_client_is_not_found_and_nothing_is_written(manager, opened, written):
    ann = await opened()
    await manager.sessions.unregister(ann)
    [said] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(said, Outcome)
    assert (said.position, said.outcome) == (None, "not_found")
    assert await written.calls() == []


class Meanwhile(MemoryEventLog):
    """Something happens between the look at a session and the write; and something after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.after = lambda: None

    def submit(self, subject, event, done):
        before, after = self.before, self.after
        self.before = self.after = lambda: None
        before()
        super().submit(subject, event, done)
        after()


@pytest.fixture
def log() -> MemoryEventLog:
    return Meanwhile()


def changes(log: MemoryEventLog, author, session_id: str, *commands):
    """Store what another process does to a session, at once."""
    subject = HubSubjects(HubName("chat"), 1).session(session_id)

    def run() -> None:
        for command in commands:
            state = codec.session_state(log._partitions[0].last_of(subject))
            for event in session.decide(state, command):
                log.store(subject, author.write(event, actor="system:test"))

    return run


async def test_closed_between_the_look_and_the_write_is_not_found(manager, log, author, opened, written):
    ann = await opened()
    log.before = changes(log, author, ann, Close("client"))
    [said] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(said, Outcome)
    assert (said.position, said.outcome) == (None, "not_found")
    assert len(await written.calls()) == 1  # it reaches nobody: the session had closed by its position


async def test_closed_or_detached_after_the_write_was_sent(manager, log, author, opened):
    for command in (Close("client"), Detach("", "timeout", 1)):
        ann = await opened()
        if isinstance(command, Detach):
            command = Detach(f"c-{ann}", "timeout", 1)  # noqa: PLW2901
        log.after = changes(log, author, ann, command)
        [said] = await outcome(manager.router, call(selector.Client(ann)))
        assert isinstance(said, Outcome)
        assert said.outcome == "sent"


async def test_detached_before_and_back_after_the_write_is_queued(manager, log, author, opened):
    ann = await opened()
    log.before = changes(log, author, ann, Detach(f"c-{ann}", "timeout", 1))

    log.after = changes(log, author, ann, Attach("n", "i", "c2", 1, 0, 1 << 60))
    [said] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(said, Outcome)
    assert said.outcome == "queued"
    assert (await manager.sessions.get(ann)).state.status == "active"


async def test_calls_of_one_caller_keep_their_order(manager, opened, written):
    ann = await opened("g")
    said: list[Outcome | HublogError] = []
    targets = [
        selector.Client(ann),
        selector.All(),
        selector.Client(ann),
        selector.Group("g"),
        selector.Clients((ann,)),
    ]
    for number, to in enumerate(targets):
        first = manager.router.submit(call(to, arguments=b"[%d]" % number), said.append)
        if first is not None:
            await first
    await until(lambda: len(said) == len(targets))
    assert [bytes(event.arguments) for _, _, event in await written.calls()] == [b"[%d]" % n for n in range(5)]


# ---- keys

KEYED = [selector.All(), selector.Group("g"), selector.Clients(("a", "b")), selector.User("ann")]


@pytest.mark.parametrize("to", KEYED, ids=lambda to: type(to).__name__)
async def test_a_repeated_key_finds_its_first_outcome(manager, other, written, to):
    first = await manager.router.invoke(call(to, caller="s1", user="ann", key="k"))
    again = await manager.router.invoke(call(to, caller="s1", user="ann", key="k"))
    elsewhere = await other.router.invoke(call(to, caller="s2", user="ann", key="k"))
    assert first == again == elsewhere
    assert first.invocation_id == keyed_id(HubName("chat"), "user:ann", "k")
    assert len(await written.calls()) == 1


async def test_a_repeated_key_to_a_client_finds_its_first_outcome_even_when_it_closed(manager, opened, detach, written):
    ann = await opened()
    request = call(selector.Client(ann), caller="s1", key="k")
    first = await manager.router.invoke(request)
    assert (first.outcome, await manager.router.invoke(request)) == ("sent", first)
    await detach(ann)
    assert await manager.router.invoke(request) == first
    second = await manager.router.invoke(call(selector.Client(ann), caller="s1", key="k2"))
    assert second.outcome == "queued"
    await manager.sessions.unregister(ann)
    assert await manager.router.invoke(request) == first
    assert await manager.router.invoke(call(selector.Client(ann), caller="s1", key="k2")) == second
    # A new key finds nobody, and writes nothing.
    assert (await manager.router.invoke(call(selector.Client(ann), caller="s1", key="k3"))).outcome == "not_found"
    assert len(await written.calls()) == 2


@pytest.mark.parametrize("how", ["open", "closed"])
async def test_a_key_names_one_call(manager, opened, how):
    ann = await opened("g")
    for to in (selector.All(), selector.Client(ann), selector.Group("g")):
        key = type(to).__name__
        await manager.router.invoke(call(to, user="ann", key=key))
        if how == "closed" and isinstance(to, selector.Client):
            await manager.sessions.unregister(ann)
        others = [
            call(to, user="ann", key=key, arguments=b'["other"]'),
            call(to, user="ann", key=key, ttl_ms=1),
            Call(to, "shout", b'["hi"]', actor="system:api", user="ann", key=key),
        ]
        if how == "open":
            others += [
                call(selector.Groups(("x", "y")), user="ann", key=key),
                call(selector.Caller(), caller=ann, user="ann", key=key),
            ]
        for other in others:
            with pytest.raises(KeyReused):
                await manager.router.invoke(other)


async def test_keys_of_others_are_other_keys(manager, written):
    owners = [
        {"user": "ann", "caller": "s1"},
        {"user": "bob", "caller": "s2"},
        {"caller": "s1"},
        {"caller": "s2"},
        {"actor": "system:api"},
        {},
    ]
    said = [await manager.router.invoke(call(selector.All(), key="k", **owner)) for owner in owners]
    assert len({each.invocation_id for each in said}) == len(owners) - 1  # the last two are one
    assert len(await written.calls()) == len(owners) - 1


async def test_a_backend_that_acts_for_a_user_shares_its_keys(manager):
    as_session = await manager.router.invoke(call(selector.All(), caller="s1", user="ann", key="k"))
    as_backend = await manager.router.invoke(call(selector.All(), actor="user:ann", key="k"))
    assert as_session == as_backend


async def test_without_a_key_the_same_call_twice_is_two_calls(manager, written):
    first = await manager.router.invoke(call(selector.All(), user="ann"))
    assert await manager.router.invoke(call(selector.All(), user="ann")) != first
    assert len(await written.calls()) == 2


# ---- refusals: nothing is written and nobody is answered

REFUSED = [
    (call(selector.All(), arguments=b"{}"), InvalidArguments),
    (call(selector.All(), arguments=b"[oops]"), InvalidArguments),
    (call(selector.Client("a"), arguments=b'["\xff"]'), InvalidArguments),
    (call(selector.Caller()), InvalidSelector),
    (call(selector.GroupsExceptCaller(("g",))), InvalidSelector),
    (call(selector.Client("\ud800")), InvalidSelector),
    (call(selector.Group("")), InvalidName),
    (Call(selector.All(), "", b"[]", actor="system:api"), InvalidName),
    (call(selector.Clients(tuple(str(number) for number in range(1_001)))), TooManyTargets),
    (call(selector.All(), key=""), InvalidOption),
    (call(selector.All(), key="k" * 129), InvalidOption),
    (call(selector.All(), ttl_ms=0), InvalidOption),
    (call(selector.All(), ttl_ms=1_001), InvalidOption),
    (call(selector.Client("a"), ttl_ms=-1), InvalidOption),
]


@pytest.mark.parametrize(("request_", "error"), REFUSED)
async def test_what_cannot_be_called_is_refused_before_anything_is_written(manager, written, request_, error):
    answers: list[Outcome | HublogError] = []
    with pytest.raises(error):
        manager.router.submit(request_, answers.append)
    with pytest.raises(error):
        await manager.router.invoke(request_)
    assert answers == []
    assert await written.all() == []


@pytest.mark.parametrize("ttl_ms", [1, 1_000])
async def test_a_time_to_live_is_stored(manager, written, ttl_ms):
    await manager.router.invoke(call(selector.All(), ttl_ms=ttl_ms))
    [(_, _, event)] = await written.calls()
    assert event.ttl_ms == ttl_ms


# ---- exactly one answer


@pytest.mark.parametrize("error", [LogUnavailable("x"), LogFull("x"), OutcomeUnknown("x")])
@pytest.mark.parametrize("to", ["all", "client"])
async def test_a_write_that_fails_is_answered_once(manager, opened, log, written, error, to):
    ann = await opened()
    log.fail_next(error)
    said = await outcome(manager.router, call(selector.All() if to == "all" else selector.Client(ann)))
    assert said == [error]
    log.fail_next(error)
    with pytest.raises(type(error)):
        await manager.router.invoke(call(selector.All() if to == "all" else selector.Client(ann)))
    assert await written.calls() == []


async def test_a_failing_recipient_does_not_stop_others(manager, opened, log, written):
    ann, bob, eve = await opened(), await opened(), await opened()
    await manager.sessions.unregister(bob)
    said = []
    for number, who in enumerate((ann, bob, eve)):
        if number == 0:
            log.fail_next(LogUnavailable("x"))
        said += await outcome(manager.router, call(selector.Client(who)))
    assert [getattr(each, "outcome", None) or each.code for each in said] == ["log_unavailable", "not_found", "sent"]
    # One call on all three is one event: no recipient can stop it half-way.
    assert (await manager.router.clients([ann, bob, eve], "say")).outcome == "accepted"
    *_, (_, _, event) = await written.calls()
    assert event.sessions == (ann, bob, eve)


async def test_a_log_that_goes_away_at_any_step_is_one_answer(manager, opened, log):
    ann = await opened()
    log.disconnect()
    for to in (selector.All(), selector.Client(ann), selector.Group("g")):
        [error] = await outcome(manager.router, call(to))
        assert isinstance(error, LogUnavailable)
    log.reconnect()
    log.after = log.disconnect  # written, but the outcome cannot be looked up
    [error] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(error, OutcomeUnknown), "not as if nothing had been written"


async def test_a_session_of_a_newer_release_is_said_so(manager, log, author):
    log.store("ev.0.chat.s.x.log", NewEvent(EventId("e"), b'{"id":"e","type":"session.opened.v2","at":"","actor":""}'))
    [error] = await outcome(manager.router, call(selector.Client("x")))
    assert isinstance(error, UpgradeRequired)


async def test_a_defect_is_one_answer_too(manager, opened, log, monkeypatch):
    ann = await opened()

    async def broken(*_args, **_more):
        raise RuntimeError("a defect")

    monkeypatch.setattr(log, "last", broken)
    [error] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(error, Internal)
    with pytest.raises(Internal):
        await manager.router.invoke(call(selector.Client(ann)))


async def test_a_defect_after_the_write_is_one_answer_too(manager, opened, log, monkeypatch):
    ann = await opened()

    async def broken(*_args, **_more):
        raise RuntimeError("a defect")

    log.after = lambda: monkeypatch.setattr(log, "last", broken)
    [error] = await outcome(manager.router, call(selector.Client(ann)))
    assert isinstance(error, Internal)


async def test_an_answer_that_fails_is_not_called_again(manager, opened):
    ann = await opened()
    answers = []

    def answer(said: Outcome | HublogError) -> None:
        answers.append(said)
        raise RuntimeError("the caller's own defect")

    noticed: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: noticed.append(context))
    first = manager.router.submit(call(selector.Client(ann)), answer)
    assert first is not None
    await first
    for _ in range(20):
        await asyncio.sleep(0)
    await manager.router.shutdown()
    gc.collect()
    assert len(answers) == 1
    assert len(noticed) == 1


async def test_what_is_too_large_for_the_log_is_refused_to_its_caller_only(manager, written):
    [error] = await outcome(manager.router, call(selector.All(), arguments=b'["' + b"x" * (1 << 20) + b'"]'))
    assert isinstance(error, PayloadTooLarge)
    assert (await manager.router.all("say")).outcome == "accepted"
    assert len(await written.calls()) == 1


async def test_shutting_down_waits_for_outcomes(manager, opened):
    ann = await opened()
    said: list[Outcome | HublogError] = []
    first = manager.router.submit(call(selector.Client(ann)), said.append)
    assert first is not None
    await first
    await asyncio.sleep(0)
    await manager.router.shutdown()
    assert [getattr(each, "outcome", None) for each in said] == ["sent"]


# ---- as the backend


async def test_the_backends_calls_by_name(manager, opened, written):
    ann = await opened()
    router = manager.router
    said = [
        await router.all("say", 1, "x", {"a": None}),
        await router.all_except([ann, ann], "say"),
        await router.client(ann, "say"),
        await router.clients([ann, "b"], "say"),
        await router.group("g", "say", without=[ann]),
        await router.groups(["g", "h", "g"], "say", without=[ann]),
        await router.user("ann", "say"),
        await router.client("nobody", "say"),
    ]
    assert [each.outcome for each in said] == [*["accepted"] * 2, "sent", *["accepted"] * 4, "not_found"]
    assert [(where, event.sessions, event.groups, event.without) for where, _, event in await written.calls()] == [
        ("all", (), (), ()),
        ("all", (), (), (ann,)),
        (f"s.{ann}.inbox", (), (), ()),
        ("many", (ann, "b"), (), ()),
        ("g.g", (), (), (ann,)),
        ("many", (), ("g", "h"), (ann,)),
        ("u.ann", (), (), ()),
    ]
    calls = await written.calls()
    assert bytes(calls[0][2].arguments) == b'[1,"x",{"a":null}]'
    assert {envelope.actor for _, envelope, _ in calls} == {"system:service"}


@pytest.mark.parametrize("value", [object(), "\ud800", {1: object()}, {1, object()}])
async def test_arguments_that_are_no_json_are_refused(manager, written, value):
    with pytest.raises(InvalidArguments):
        await manager.router.all("say", value)
    assert await written.all() == []


async def test_without_a_bound_on_age_there_still_is_one():
    unbounded = session_manager("chat")
    assert (await unbounded.router.invoke(call(selector.All(), ttl_ms=1 << 40))).outcome == "accepted"
    with pytest.raises(InvalidOption):
        await unbounded.router.invoke(call(selector.All(), ttl_ms=1 << 60))
