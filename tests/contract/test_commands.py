"""Commands on one aggregate, over both logs: nobody's change is lost, and whoever was acknowledged is in the log."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from events import codec, session
from events.envelope import NewEvent, Recorded
from events.errors import (
    Conflict,
    HublogError,
    LogUnavailable,
    OutcomeUnknown,
    SessionClosed,
    SessionExists,
    SessionNotFound,
)
from lab.nats_cluster import NatsCluster
from service.log import commands
from service.log.author import Author
from service.log.commands import CommandRunner, Known, SessionAggregate
from service.log.memory import MemoryEventLog
from service.log.port import EventLog
from service.up.nats_server import NatsServer
from tests.servers.cluster import REPLICAS, straight_cluster
from tests.servers.event_logs import Bench, MemoryBench, event, jetstream_bench
from tests.servers.nats import delete_all_streams

__all__ = ["straight_cluster"]
OPEN = session.Open(node="n", incarnation="i", connection="c")
Runner = CommandRunner[session.State, session.Command]


@pytest.fixture(params=["memory", "jetstream", "cluster"])
async def bench(
    request: pytest.FixtureRequest, nats_server: NatsServer, straight_cluster: NatsCluster
) -> AsyncIterator[Bench]:
    if request.param == "memory":
        yield MemoryBench()
        return
    several = request.param == "cluster"
    url = straight_cluster.url_of(0) if several else nats_server.url
    await delete_all_streams(url)
    async with jetstream_bench(url, REPLICAS if several else 1) as made:
        yield made


def runner(log: EventLog) -> Runner:
    return CommandRunner(log, Author(), SessionAggregate())


def subject() -> str:
    return f"ev.0.h.s.{secrets.token_hex(8)}.log"


async def history(log: EventLog, of: str) -> list[tuple[Recorded, session.Event]]:
    last = await log.last(of)
    assert last is not None
    found = [one async for one in log.read(of, 1, last.sequence)]
    return [(one, written) for one in found if isinstance(written := codec.decode(one.payload)[1], session.Event)]


async def test_a_command_is_decided_and_written(bench: Bench) -> None:
    run, of = runner(bench.log), subject()
    opened = await run.execute(of, OPEN, actor="session:s")
    assert [type(one) for one in opened.events] == [session.Opened]
    assert opened.known.state.status == "active"
    joined = await run.execute(of, session.Join(groups=("a", "b")), actor="session:s")
    assert joined.known.state.groups == {"a": joined.known.sequence, "b": joined.known.sequence}
    again = await run.execute(of, session.Join(groups=("a",)), actor="session:s")
    assert again.events == ()
    assert again.known.sequence == joined.known.sequence
    loaded = await run.load(of)
    assert loaded.sequence == joined.known.sequence
    assert loaded.state == again.known.state
    with pytest.raises(SessionExists):
        await run.execute(of, OPEN, actor="session:s")
    with pytest.raises(SessionNotFound):
        await run.execute(subject(), session.Join(groups=("a",)), actor="session:s")
    assert run._locks == {}


async def test_what_a_stale_hint_refuses_is_checked_on_the_leader(bench: Bench) -> None:
    run, of = runner(bench.log), subject()
    opened = await run.execute(of, OPEN, actor="session:s")
    closed = Known(session.State(status="closed", reason="client"), opened.known.sequence)
    joined = await run.execute(of, session.Join(groups=("a",)), actor="session:s", hint=lambda: closed)
    assert joined.known.state.groups.keys() == {"a"}
    # And what a stale hint calls done is not done, if the leader knows otherwise.
    left = await run.execute(of, session.Leave(groups=("a",)), actor="session:s", hint=lambda: opened.known)
    assert left.known.state.groups == {}
    # A stale hint that would write meets a conflict, and is decided again.
    before = run.conflicts
    again = await run.execute(of, session.Join(groups=("b",)), actor="session:s", hint=lambda: opened.known)
    assert again.known.state.groups.keys() == {"b"}
    assert run.conflicts == before + 1


async def test_a_fresh_hint_saves_the_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run, of = runner(bench.log), subject()
    opened = await run.execute(of, OPEN, actor="session:s", hint=lambda: Known(session.INITIAL, 0))

    async def unread(_: str) -> Recorded | None:
        pytest.fail("it was read")

    monkeypatch.setattr(bench.log, "last", unread)
    joined = await run.execute(of, session.Join(groups=("a",)), actor="session:s", hint=lambda: opened.known)
    assert joined.known.state.groups.keys() == {"a"}


async def test_a_hundred_joins_and_leaves_of_one_session_from_two_processes(bench: Bench) -> None:
    one, other, of = runner(bench.log), runner(await bench.another()), subject()
    await one.execute(of, OPEN, actor="session:s")
    wanted: list[session.Command] = [
        session.Join(groups=(f"g{n % 7}",)) if n % 3 else session.Leave(groups=(f"g{n % 5}",)) for n in range(100)
    ]
    outcomes = await asyncio.gather(
        *((one, other)[n % 2].execute(of, command, actor="session:s") for n, command in enumerate(wanted))
    )
    written = await history(bench.log, of)
    by_sequence = {recorded.sequence: event_ for recorded, event_ in written}
    for outcome in outcomes:
        for event_ in outcome.events:
            assert by_sequence[outcome.known.sequence] == event_
    assert len(written) == 1 + sum(len(outcome.events) for outcome in outcomes)
    folded = session.INITIAL
    for recorded, event_ in written:
        folded = session.evolve(folded, event_, recorded.sequence, recorded.stored_at_us)
        assert session.settle(event_, recorded.sequence, recorded.stored_at_us) == folded
    assert (await one.load(of)).state == (await other.load(of)).state == folded
    assert one._locks == other._locks == {}


async def test_inside_one_process_nothing_conflicts(bench: Bench) -> None:
    run, of = runner(bench.log), subject()
    await run.execute(of, OPEN, actor="session:s")
    await asyncio.gather(
        *(run.execute(of, session.Join(groups=(f"g{n}",)), actor="session:s") for n in range(50)),
    )
    assert run.conflicts == 0
    assert len((await run.load(of)).state.groups) == 50


async def test_other_aggregates_do_not_wait(bench: Bench) -> None:
    run, of = runner(bench.log), subject()
    async with run._alone(of):
        await run.execute(subject(), OPEN, actor="session:s")
        waiting = asyncio.create_task(run.execute(of, OPEN, actor="session:s"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert run._locks == {}


class Awkward(MemoryEventLog):
    """Stores what it is given to append, and fails to say so; or loses against others, as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.stores_and_fails: list[HublogError] = []
        self.others = 0

    async def append(self, subject: str, events: list[NewEvent], expected: int) -> int:  # type: ignore[override]
        if self.others:
            self.others -= 1
            last = await self.last(subject)
            assert last is not None
            self.store(subject, event(last.payload))
        sequence = await super().append(subject, events, expected)
        if self.stores_and_fails:
            raise self.stores_and_fails.pop()
        return sequence


async def test_who_always_loses_is_told_so_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CONFLICT_DEADLINE_S", 0.05)
    log, of = Awkward(), subject()
    run = runner(log)
    await run.execute(of, OPEN, actor="session:s")
    log.others = 1_000
    with pytest.raises(Conflict):
        await run.execute(of, session.Join(groups=("a",)), actor="session:s")
    assert 1 < run.conflicts < 1_000


async def test_who_insists_is_done_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CONFLICT_DEADLINE_S", 0.0)
    monkeypatch.setattr(commands, "INSIST_BACKOFF_S", (0.0, 0.001))
    log, of = Awkward(), subject()
    run = runner(log)
    await run.execute(of, OPEN, actor="session:s")
    log.others = 3
    for _ in range(5):
        log.fail_next(LogUnavailable("away"))
    log.stores_and_fails = [OutcomeUnknown("nobody knows")]
    closed = await run.execute(of, session.Close(reason="client"), actor="session:s", insist=True)
    assert closed.events == ()  # the unknown one was stored, and found
    assert closed.known.state.status == "closed"
    written = await history(log, of)
    assert [type(one) for _, one in written][-1] is session.Closed
    assert sum(type(one) is session.Closed for _, one in written) == 1


async def test_who_does_not_insist_is_told_at_once() -> None:
    log, of = Awkward(), subject()
    run = runner(log)
    log.fail_next(LogUnavailable("away"))
    with pytest.raises(LogUnavailable):
        await run.execute(of, OPEN, actor="session:s")
    log.stores_and_fails = [OutcomeUnknown("nobody knows")]
    with pytest.raises(OutcomeUnknown):
        await run.execute(of, OPEN, actor="session:s")
    await run.execute(of, session.Close(reason="client"), actor="session:s")
    with pytest.raises(SessionClosed):
        await run.execute(of, session.Join(groups=("a",)), actor="session:s", insist=True)
