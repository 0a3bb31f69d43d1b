"""Commands on one aggregate: one after the other here, decided again when somebody elsewhere was quicker."""

import asyncio

import pytest

from events import codec, session
from events.envelope import NewEvent
from events.errors import (
    Conflict,
    LogFull,
    LogUnavailable,
    OutcomeUnknown,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    UpgradeRequired,
)
from events.ids import EventId, HubName
from events.session import Close, Join, Leave, Open
from events.subjects import HubSubjects
from service.breaker import RetryBudget
from service.log import commands
from service.log.commands import CommandRunner, Known, SessionAggregate
from service.log.memory import MemoryEventLog

SUBJECT = HubSubjects(HubName("chat"), 1).session("s")
OPEN = Open("n", "i", "c")


class Slow(MemoryEventLog):
    """Counts reads, and lets something happen before the next append."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.appending = 0
        self.at_once_most = 0
        self.before = lambda: None

    async def last(self, subject):
        self.reads += 1
        return await super().last(subject)

    async def append(self, subject, events, expected):
        self.appending += 1
        self.at_once_most = max(self.at_once_most, self.appending)
        try:
            self.before()
            await asyncio.sleep(0)
            return await super().append(subject, events, expected)
        finally:
            self.appending -= 1


@pytest.fixture
def log() -> Slow:
    return Slow()


@pytest.fixture
def runner(log, author) -> CommandRunner[session.State, session.Command]:
    return CommandRunner(log, author, SessionAggregate())


@pytest.fixture
def elsewhere(log, author):
    """Store, at once, what another process decides."""

    def run(*these: session.Command) -> None:
        for command in these:
            state = codec.session_state(log._partitions[0].last_of(SUBJECT))
            for event in session.decide(state, command):
                log.store(SUBJECT, author.write(event, actor="system:elsewhere"))

    return run


async def test_what_happened_is_returned_with_what_is_true_afterwards(runner):
    opened = await runner.execute(SUBJECT, OPEN, actor="session:s")
    assert [type(event) for event in opened.events] == [session.Opened]
    assert opened.known == await runner.load(SUBJECT)
    joined = await runner.execute(SUBJECT, Join(("g",)), actor="session:s")
    assert joined.known == Known(joined.known.state, 2)
    assert joined.known.state.groups == {"g": 2}


async def test_already_done_writes_nothing(runner, log):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    done = await runner.execute(SUBJECT, Leave(("g",)), actor="session:s")
    assert (done.events, done.known.sequence) == ((), 1)
    assert await log.last_sequence(0) == 1


async def test_refusals_are_the_leaders_word(runner, log):
    with pytest.raises(SessionNotFound):
        await runner.execute(SUBJECT, Join(("g",)), actor="session:s")
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    with pytest.raises(SessionExists):
        await runner.execute(SUBJECT, OPEN, actor="session:s")
    assert await log.last_sequence(0) == 1


async def test_a_good_hint_saves_the_read(runner, log):
    known = (await runner.execute(SUBJECT, OPEN, actor="session:s")).known
    log.reads = 0
    joined = await runner.execute(SUBJECT, Join(("g",)), actor="session:s", hint=lambda: known)
    assert (joined.known.sequence, log.reads) == (2, 0)


async def test_a_stale_hint_costs_a_read_and_never_the_truth(runner, elsewhere, log):
    known = (await runner.execute(SUBJECT, OPEN, actor="session:s")).known
    elsewhere(Join(("g",)))
    # The hint would write it again: the log refuses, and it is already done.
    done = await runner.execute(SUBJECT, Join(("g",)), actor="session:s", hint=lambda: known)
    assert (done.events, done.known.sequence, runner.conflicts) == ((), 2, 1)
    # The hint would call it done: the leader says otherwise.
    left = await runner.execute(SUBJECT, Leave(("g",)), actor="session:s", hint=lambda: known)
    assert [type(event) for event in left.events] == [session.Left]
    # The hint would refuse it.
    gone = Known(session.State(status="closed", reason="client"), 99)
    joined = await runner.execute(SUBJECT, Join(("h",)), actor="session:s", hint=lambda: gone)
    assert joined.known.state.groups == {"h": 4}
    assert await log.last_sequence(0) == 4


async def test_the_hint_is_asked_for_when_it_is_this_commands_turn(runner):
    known: list[Known[session.State] | None] = [None]

    async def run(command: session.Command) -> None:
        known[0] = (await runner.execute(SUBJECT, command, actor="session:s", hint=lambda: known[0])).known

    await asyncio.gather(run(OPEN), *(run(Join((f"g{number}",))) for number in range(20)))
    assert runner.conflicts == 0
    assert known[0] is not None
    assert len(known[0].state.groups) == 20


async def test_commands_of_one_aggregate_go_one_by_one_and_leave_no_lock_behind(runner, log):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    await asyncio.gather(*(runner.execute(SUBJECT, Join((f"g{n}",)), actor="session:s") for n in range(20)))
    assert (log.at_once_most, runner.conflicts) == (1, 0)
    assert runner._locks == {}


async def test_commands_of_different_aggregates_do_not_wait_for_each_other(runner, log):
    others = [HubSubjects(HubName("chat"), 1).session(f"s{number}") for number in range(5)]
    await asyncio.gather(*(runner.execute(subject, OPEN, actor="session:s") for subject in others))
    assert log.at_once_most > 1
    assert runner._locks == {}


async def test_who_is_cancelled_while_waiting_leaves_no_lock_behind(runner):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    running = [asyncio.ensure_future(runner.execute(SUBJECT, Join((f"g{n}",)), actor="session:s")) for n in range(3)]
    await asyncio.sleep(0)
    running[1].cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert runner._locks == {}
    assert set((await runner.load(SUBJECT)).state.groups) == {"g0", "g2"}


async def test_somebody_quicker_elsewhere_means_deciding_again(runner, elsewhere, log):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    todo = [Join(("a",)), Join(("b",)), Leave(("a",))]

    def interfere() -> None:
        if todo:
            elsewhere(todo.pop(0))

    log.before = interfere
    joined = await runner.execute(SUBJECT, Join(("mine",)), actor="session:s")
    assert set(joined.known.state.groups) == {"b", "mine"}
    assert runner.conflicts == 3


async def test_closed_in_the_meantime_is_a_refusal(runner, elsewhere, log):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    log.before = lambda: elsewhere(Close("kicked")) if log.appending else None
    with pytest.raises(SessionClosed):
        await runner.execute(SUBJECT, Join(("g",)), actor="session:s")


async def test_when_others_are_always_quicker_it_gives_up_in_time(runner, elsewhere, log, monkeypatch):
    monkeypatch.setattr(commands, "CONFLICT_DEADLINE_S", 0.05)
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    count = iter(range(10_000))
    log.before = lambda: elsewhere(Join((f"g{next(count) % 100}",)), Leave((f"g{next(count) % 100}",)))
    with pytest.raises(Conflict):
        await runner.execute(SUBJECT, Join(("mine",)), actor="session:s")
    assert runner.conflicts > 1


@pytest.mark.parametrize("error", [LogUnavailable("x"), OutcomeUnknown("x")])
async def test_what_may_pass_is_raised_or_insisted_on(runner, log, error, monkeypatch):
    monkeypatch.setattr(commands, "INSIST_BACKOFF_S", (0.0, 0.001))
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    log.fail_next(error)
    with pytest.raises(type(error)):
        await runner.execute(SUBJECT, Close("client"), actor="session:s")
    for _ in range(3):
        log.fail_next(error)
    closed = await runner.execute(SUBJECT, Close("client"), actor="session:s", insist=True)
    assert closed.known.state.status == "closed"


async def test_insisting_goes_on_past_the_deadline_of_conflicts(runner, elsewhere, log, monkeypatch):
    monkeypatch.setattr(commands, "CONFLICT_DEADLINE_S", 0.0)
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    todo = [Join((f"g{number}",)) for number in range(5)]
    log.before = lambda: elsewhere(todo.pop()) if todo else None
    closed = await runner.execute(SUBJECT, Close("client"), actor="session:s", insist=True)
    assert closed.known.state.status == "closed"
    assert runner.conflicts == 5


async def test_an_insisting_command_whose_outcome_was_unknown_is_not_written_twice(runner, elsewhere, log, monkeypatch):
    monkeypatch.setattr(commands, "INSIST_BACKOFF_S", (0.0, 0.001))
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    stored = []

    def store_and_lose_the_answer() -> None:
        if not stored:
            stored.append(1)
            elsewhere(Close("client"))
            log.fail_next(OutcomeUnknown("lost"))

    log.before = store_and_lose_the_answer
    closed = await runner.execute(SUBJECT, Close("client"), actor="session:s", insist=True)
    assert (closed.events, closed.known.state.status) == ((), "closed")
    assert await log.last_sequence(0) == 2


async def test_insisting_does_not_go_on_where_nothing_will_pass(runner, log):
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    log.fail_next(LogFull("x"))
    with pytest.raises(LogFull):
        await runner.execute(SUBJECT, Close("client"), actor="session:s", insist=True)


async def test_a_state_of_a_newer_release_refuses_commands(runner, log):
    log.store(SUBJECT, NewEvent(EventId("e"), b'{"id":"e","type":"session.opened.v2","at":"","actor":""}'))
    with pytest.raises(UpgradeRequired):
        await runner.execute(SUBJECT, Join(("g",)), actor="session:s")


async def test_every_event_of_a_command_names_who_did_it(runner, log):
    await runner.execute(SUBJECT, OPEN, actor="user:admin")
    recorded = await log.last(SUBJECT)
    assert recorded is not None
    assert codec.envelope(recorded.payload).actor == "user:admin"


async def test_beyond_the_budget_a_conflict_is_given_back_and_who_insists_waits(runner, elsewhere, log, monkeypatch):
    monkeypatch.setattr(commands, "INSIST_BACKOFF_S", (0.001, 0.002))
    await runner.execute(SUBJECT, OPEN, actor="session:s")
    others = iter(range(100))
    log.before = lambda: elsewhere(Join((f"g{next(others)}",)))
    runner.repeats = RetryBudget(0.0, 2.0, 0.0)
    with pytest.raises(Conflict):
        await runner.execute(SUBJECT, Join(("mine",)), actor="session:s")
    assert (runner.conflicts, runner.repeats.refused) == (3, 1)
    assert log.tally.repeats_refused == 1, "and it is counted for the process"
    insisting = asyncio.create_task(runner.execute(SUBJECT, Close("client"), actor="session:s", insist=True))
    async with asyncio.timeout(5):
        while runner.repeats.refused < 4:  # noqa: ASYNC110  nothing tells when it is refused
            await asyncio.sleep(0.001)
    assert runner.conflicts == 4, "it has not asked the log again"
    log.before = lambda: None
    runner.repeats = RetryBudget(1.0, 1.0, 0.0)
    assert [type(event) for event in (await insisting).events] == [session.Closed]
