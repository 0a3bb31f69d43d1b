"""The canary: what it measures, what it says when a leg fails, and that it never stops anything."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import structlog

from events import codec, node, subjects
from events.errors import LogUnavailable, ReadModelUnavailable
from events.ids import Position
from service.log.author import Author
from service.log.memory import MemoryEventLog
from service.nodes import canary as canaries
from service.nodes.canary import Canary

MakeCanary = Callable[..., Canary]


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog(partitions=2)


@pytest.fixture
async def make(log: MemoryEventLog):
    """A canary that listens, and sings when it is told."""
    running: list[asyncio.Task[None]] = []

    async def make_one(projected: Callable[[Position, float], Awaitable[None]] | None = None) -> Canary:
        made = Canary("gw-0", lambda: "life", log, log, Author(), projected, every_s=3600.0)
        running.append(asyncio.create_task(made.run()))
        while len(log.subscriptions) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return made

    yield make_one
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert not log.subscriptions


async def test_it_goes_the_whole_way_and_each_leg_ends_after_the_one_before(make, log) -> None:
    asked: list[Position] = []

    async def projected(position: Position, _timeout_s: float) -> None:
        asked.append(position)

    canary = await make(projected)
    song = await canary.sing(1)
    assert song.problem is None
    assert 0 < song.legs["append"] <= song.legs["project"]
    assert 0 < song.legs["deliver"] <= song.legs["project"]
    assert asked == [Position(log.epoch, 1, 1)]
    [shown] = canary.shown()
    assert shown.keys() == {"partition", "ageS", "appendMs", "deliverMs", "projectMs", "problem"}
    written = await log.last(subjects.canary("gw-0", 1))
    assert written is not None
    assert codec.decode(written.payload)[1] == node.Canary(node="gw-0", incarnation="life")
    assert await log.last_sequence(0) == 0


async def test_without_postgres_the_last_leg_is_left_out(make) -> None:
    canary = await make()
    song = await canary.sing(0)
    assert (set(song.legs), song.problem) == ({"append", "deliver"}, None)


async def test_the_leg_that_fails_is_named_counted_and_said_once(make, log) -> None:
    async def away(_position: Position, _timeout_s: float) -> None:
        raise ReadModelUnavailable("Postgres does not answer")

    canary = await make(away)
    with structlog.testing.capture_logs() as lines:
        log.fail_next(LogUnavailable("nobody there"))
        first = await canary.sing(0)
        second = await canary.sing(0)
    assert first.problem == "append: log_unavailable: nobody there. NATS does not answer; try again in a moment."
    assert first.legs == {}
    assert second.problem is not None
    assert second.problem.startswith("project: read_model_unavailable: ")
    assert set(second.legs) == {"append", "deliver"}
    assert canary.failures == {"append": 1, "deliver": 0, "project": 1}
    assert canary.songs == 2
    assert [line["event"] for line in lines] == ["canary.failed"]


async def test_a_feed_that_loses_it_is_a_failure_of_delivery(make, log, monkeypatch) -> None:
    monkeypatch.setattr(canaries, "LEG_TIMEOUT_S", 0.05)
    canary = await make()
    log.drop_next_live()
    song = await canary.sing(0)
    assert song.problem == "deliver: not within 0.05 s"
    assert set(song.legs) == {"append"}
    assert (await canary.sing(0)).problem is None


async def test_it_sings_by_itself_in_every_partition(log, monkeypatch) -> None:
    canary = Canary("gw-0", lambda: "life", log, log, Author(), None, every_s=0.001)
    running = asyncio.create_task(canary.run())
    async with asyncio.timeout(5):
        while canary.songs < 6:  # noqa: ASYNC110  nothing tells when it has sung
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [one["partition"] for one in canary.shown()] == [0, 1]
    assert sum(canary.failures.values()) == 0


async def test_it_can_be_told_not_to(log) -> None:
    await Canary("gw-0", lambda: "life", log, log, Author(), None, every_s=0.0).run()
    assert not log.subscriptions
    assert await log.last_sequence(0) == 0
