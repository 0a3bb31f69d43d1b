"""The judge on a log in memory: who is called lost, how often, and who is not."""

import pytest

from events import codec, node, subjects
from events.errors import LogUnavailable
from projections.fold import fold
from projections.read.sweeping import Life
from service.log.author import Author
from service.log.memory import MemoryEventLog
from service.nodes.judge import Judge
from service.nodes.lease import Lease


class FoldedLives:
    """What the read models would say, from the log as it is now."""

    def __init__(self, log: MemoryEventLog) -> None:
        self.log = log
        self.away = False

    async def lives(self, leased: list[str]) -> list[Life]:
        if self.away:
            raise LogUnavailable("away")
        rows = fold(self.log._partitions[0].events, ())
        found = [
            Life(name, incarnation, row.state == "lost", row.changed_at_us)
            for (name, incarnation), row in rows.nodes.items()
        ]
        return [life for life in found if not life.lost or life.incarnation in leased]


class World:
    def __init__(self) -> None:
        self.s = 0.0
        self.author = Author(lambda: int(self.s * 1e6))
        self.log = MemoryEventLog(now_us=self.author.now_us)
        self.lives = FoldedLives(self.log)
        self.leading = True
        self.judge = self.another()

    def another(self) -> Judge:
        return Judge(
            self.log, self.lives, self.author, lambda: self.leading, lambda: not self.leading, clock=lambda: self.s
        )

    async def start(self, name: str = "gw") -> Lease:
        lease = Lease(name, "0", "", self.log, self.log, self.author)
        await lease.start()
        return lease

    async def watch(self, seconds: int, *renewing: Lease, judges: tuple[Judge, ...] = ()) -> None:
        for _ in range(seconds):
            self.s += 1
            if self.log.connected:
                for lease in renewing:
                    await lease._renew()
            for judge in judges or (self.judge,):
                await judge.look()

    async def lost(self) -> list[node.Lost]:
        found = [codec.decode(event.payload)[1] for event in self.log._partitions[0].events]
        return [event for event in found if isinstance(event, node.Lost)]


async def test_a_silent_node_is_lost_once_and_the_other_is_not() -> None:
    world = World()
    dead, alive = await world.start("dead"), await world.start("alive")
    await world.watch(1, dead, alive)
    await world.watch(9, alive)
    assert await world.lost() == []
    await world.watch(1, alive)
    (lost,) = await world.lost()
    assert lost == node.Lost(node="dead", incarnation=dead.incarnation, last_renewal_us=1_000_000)
    await world.watch(60, alive)
    assert len(await world.lost()) == 1
    assert world.judge.lost == 1


async def test_two_judges_say_it_once() -> None:
    world = World()
    await world.start()
    judges = (world.another(), world.another())
    await world.watch(30, judges=judges)
    assert len(await world.lost()) == 1
    assert sorted(judge.lost for judge in judges) == [0, 1]


async def test_a_restarted_node_loses_its_former_life_only() -> None:
    world = World()
    first = await world.start()
    await world.watch(3, first)
    second = await world.start()
    await world.watch(20, second)
    assert [lost.incarnation for lost in await world.lost()] == [first.incarnation]


async def test_one_that_drained_is_judged_like_any_other() -> None:
    world = World()
    lease = await world.start()
    await lease.drain()
    await world.watch(12)
    assert [lost.incarnation for lost in await world.lost()] == [lease.incarnation]


async def test_a_life_of_which_the_log_says_nothing_is_judged_by_its_lease() -> None:
    world = World()
    lease = Lease("gw", "0", "", world.log, world.log, world.author)
    await lease._renew()
    await world.watch(30)
    assert [lost.incarnation for lost in await world.lost()] == [lease.incarnation]
    assert subjects.node("gw") == world.log._partitions[0].events[0].subject


async def test_while_nats_is_away_and_right_after_nobody_is_lost() -> None:
    world = World()
    lease = await world.start()
    await world.watch(9)
    world.log.disconnect()
    await world.watch(20)
    assert world.judge.problem is not None
    assert world.judge.age_s == 20
    world.log.reconnect()
    await world.watch(10)
    assert await world.lost() == []
    await world.watch(10, lease)
    assert await world.lost() == []
    assert world.judge.problem is None


async def test_a_connection_that_was_cut_between_two_looks_voids_the_count() -> None:
    world = World()
    await world.start()
    await world.watch(9)
    world.log.disconnect()
    world.log.reconnect()
    await world.watch(10)
    assert await world.lost() == []


async def test_a_judge_that_was_stopped_has_seen_nothing() -> None:
    world = World()
    await world.start()
    await world.watch(5)
    world.s += 12
    await world.watch(10)
    assert await world.lost() == []


async def test_only_the_leading_process_judges() -> None:
    world = World()
    await world.start()
    world.leading = False
    await world.watch(30)
    assert world.judge.age_s == 0
    world.leading = True
    await world.watch(10)
    assert await world.lost() == []
    await world.watch(1)
    assert len(await world.lost()) == 1


async def test_without_rows_nobody_is_judged_but_the_watching_goes_on() -> None:
    world = World()
    await world.start()
    await world.watch(3)
    world.lives.away = True
    await world.watch(20)
    assert await world.lost() == []
    assert world.judge.age_s == 0
    world.lives.away = False
    await world.watch(1)
    assert len(await world.lost()) == 1


async def test_a_loss_that_could_not_be_written_is_counted_anew() -> None:
    world = World()
    await world.start()
    await world.watch(10)
    world.log.fail_next(LogUnavailable("full"))
    await world.watch(1)
    assert await world.lost() == []
    await world.watch(10)
    assert await world.lost() == []
    await world.watch(1)
    assert len(await world.lost()) == 1


async def test_the_leader_is_asked_before_anybody_is_called_lost(monkeypatch) -> None:
    """All leases are answered by any replica: one that lags shows an old renewal."""
    world = World()
    lease = await world.start()
    on_the_leader = world.log.lease_all
    stale = await on_the_leader()

    async def lagging() -> dict[str, tuple[bytes, int]]:
        return stale

    async def lease_get(key: str) -> tuple[bytes, int] | None:
        return (await on_the_leader()).get(key)

    monkeypatch.setattr(world.log, "lease_all", lagging)
    monkeypatch.setattr(world.log, "lease_get", lease_get)
    await world.watch(40, lease)
    assert await world.lost() == []


async def test_a_lease_that_nobody_can_read_does_not_stop_the_judge() -> None:
    world = World()
    await world.start("gw")
    await world.start("alive")
    await world.log.lease_put("gw", b"{}")
    await world.log.lease_put("odd", b"\xff")
    await world.watch(12)
    assert {lost.node for lost in await world.lost()} == {"gw", "alive"}


@pytest.mark.parametrize("what", ["lease_put", "last"])
async def test_time_in_which_nobody_could_renew_does_not_count(what: str, monkeypatch) -> None:
    """The bucket, or the log that a renewal asks first, has no leader: every replica still reads, nobody renews."""
    world = World()
    alive = await world.start("alive")
    await world.watch(2, alive)
    well = getattr(world.log, what)
    monkeypatch.setattr(world.log, what, leaderless)
    await world.watch(9)
    monkeypatch.setattr(world.log, what, well)
    await world.watch(3)
    assert await world.lost() == [], "12 s without a renewal, of which 9 could have had none"
    await world.watch(8)
    assert [lost.node for lost in await world.lost()] == ["alive"]


async def leaderless(*_: object) -> int:
    raise LogUnavailable("nobody leads")
