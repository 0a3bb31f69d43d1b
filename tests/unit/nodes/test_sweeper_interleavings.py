"""Two nodes, their clients, the projector and the sweeper in any order: nobody who resumed elsewhere is harmed.

Everything runs on one log in memory, commands beside each other where hypothesis says so; the rows are those of the
projection's own fold, as late as it says. Then the log alone is looked at: every event that the sweeper wrote had the
right to be there, and nothing that it owed is missing.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import codec, node, session, subjects
from events.errors import Conflict, LogUnavailable, OutcomeUnknown, Refused
from events.ids import HubName
from events.subjects import HubSubjects
from projections.fold import Rows, fold
from projections.read.sweeping import LostLife, Owed
from service.log.author import Author
from service.log.commands import CommandRunner, SessionAggregate
from service.log.memory import MemoryEventLog
from service.nodes.judge import lost_id
from service.nodes.sweeper import ACTOR, Sweeper

CHAT = HubSubjects(HubName("chat"), 1)
TTL_S = 30.0
MAX_AGE_S = 1_000.0
START_US = 1_795_255_200_000_000
SESSIONS = ("a", "b", "c")
LIVES = ("one", "two", "three")


class FoldedRows:
    """The read models as of ``reached``."""

    def __init__(self, log: MemoryEventLog) -> None:
        self.log = log
        self.reached = 0

    def _rows(self) -> Rows:
        return fold(self.log._partitions[0].events[: self.reached], ())

    async def lost(self, after: int) -> list[LostLife]:
        found = [
            LostLife(incarnation, row.seq, row.changed_at_us)
            for (_, incarnation), row in self._rows().nodes.items()
            if row.state == "lost" and row.seq > after
        ]
        return sorted(found, key=lambda life: life.seq)

    async def attached(self, partition: int, incarnations: list[str], after: Owed | None) -> list[Owed]:
        return self._page(after, lambda s, _: s.status == "active" and s.incarnation in incarnations)

    async def overdue(self, partition: int, before_us: int, after: Owed | None) -> list[Owed]:
        return self._page(after, lambda s, _: s.status == "detached" and (s.detached_since_us or 0) < before_us)

    async def ageing(self, partition: int, up_to: int, after: Owed | None) -> list[Owed]:
        return self._page(after, lambda s, seq: s.status != "closed" and seq <= up_to)

    async def sequence_before(self, partition: int, before_us: int) -> int:
        older = [e.sequence for e in self.log._partitions[0].events[: self.reached] if e.stored_at_us < before_us]
        return older[-1] if older else 0

    async def forget(self, partition: int, found: Sequence[Owed]) -> int:
        raise AssertionError("nothing ages out here")

    def _page(self, after, condition) -> list[Owed]:
        if after is not None:
            return []
        return [
            Owed(hub, name, row.seq, row.state.connection, row.state.resumable, row.state.incarnation, row.opened_at_us)
            for (hub, name), row in sorted(self._rows().sessions.items())
            if condition(row.state, row.seq)
        ]


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.author = Author(lambda: START_US + int(self.now_s * 1e6))
        self.log = MemoryEventLog(now_us=self.author.now_us)
        self.rows = FoldedRows(self.log)
        # Every node is a process of its own: nothing serialises their commands but the log.
        self.runners = {life: CommandRunner(self.log, self.author, SessionAggregate()) for life in LIVES}
        self.lost: set[str] = set()
        self.connections = 0
        self.sweeper = Sweeper(
            0,
            self.log,
            self.rows,
            self.author,
            CommandRunner(self.log, self.author, SessionAggregate()),
            lambda: self.rows.reached,
            lambda: False,
            ttl_s=TTL_S,
            max_age_s=MAX_AGE_S,
            clock=lambda: self.now_s,
        )

    async def do(self, step: tuple[str, str, str, int]) -> None:
        what, name, life, number = step
        if what == "sweep":
            await self.sweep()
        elif what == "project":
            behind = await self.log.last_sequence(0) - self.rows.reached
            self.rows.reached += behind * number // 4
        elif what == "wait":
            self.now_s += (0.25, 5.0, TTL_S - 0.25, TTL_S + 0.25, 400.0)[number]
        elif what == "lose":
            await self.lose(life)
        elif life not in self.lost:  # a lost node is suspended: it appends nothing any more
            await self.command(what, name, life)

    async def sweep(self) -> None:
        try:
            await self.sweeper.round()
        except (LogUnavailable, OutcomeUnknown):
            self.sweeper.problem = "owed until the next round"

    async def lose(self, life: str) -> None:
        self.lost.add(life)
        said = node.Lost(node="gw", incarnation=life, last_renewal_us=1)
        event = self.author.write(said, actor=ACTOR, event_id=lost_id(life))
        await self.log.publish(subjects.node("gw"), event)

    async def command(self, what: str, name: str, life: str) -> None:
        runner = self.runners[life]
        subject = CHAT.session(name)
        self.connections += 1
        connection = f"c{self.connections}"
        state = (await runner.load(subject)).state
        command: session.Command
        match what:
            case "open":
                command = session.Open("gw", life, connection, resumable=name != "c")
            case "attach":
                command = session.Attach(
                    "gw", life, connection, state.generation, self.author.now_us(), int(TTL_S * 1e6)
                )
            case "detach":
                command = session.Detach(state.connection, "timeout", 1)
            case "join":
                command = session.Join((f"g{self.connections % 5}",))
            case _:
                command = session.Close("client", state.connection)
        if what in {"detach", "join", "close"} and state.incarnation != life:
            return  # of another node's connections it knows nothing
        try:
            await runner.execute(subject, command, actor=f"session:{name}")
        except (Refused, Conflict):
            return

    def check(self) -> Counter[str]:
        """Every event of the sweeper is right where it stands."""
        states: dict[str, session.State] = {}
        stored_at: dict[str, int] = {}
        lost: set[str] = set()
        swept: Counter[str] = Counter()
        ends: Counter[str] = Counter()
        for recorded in self.log._partitions[0].events:
            written, event = codec.decode(recorded.payload)
            if isinstance(event, node.Lost):
                lost.add(event.incarnation)
                continue
            before = states.get(recorded.subject, session.INITIAL)
            ends[recorded.subject] += isinstance(event, session.Closed)
            if written.actor == ACTOR:
                swept[type(event).__name__] += 1
                match event:
                    case session.Detached():
                        assert before.resumable
                        assert before.status == "active"
                        assert before.incarnation in lost
                        assert before.connection == event.connection
                    case session.Closed(reason="node_lost"):
                        assert not before.resumable
                        assert before.status == "active"
                        assert before.incarnation in lost
                    case session.Closed(reason="expired"):
                        assert before.status == "detached"
                        assert before.detached_since_us is not None
                        assert recorded.stored_at_us - before.detached_since_us > TTL_S * 1e6
                    case session.Carried():
                        assert before.status in {"active", "detached"}
                        assert recorded.stored_at_us - stored_at[recorded.subject] >= MAX_AGE_S * 1e6 / 2
                    case _:
                        raise AssertionError(f"what has the sweeper to do with {event}?")
            states[recorded.subject] = session.settle(event, recorded.sequence, recorded.stored_at_us)
            assert states[recorded.subject] == session.evolve(before, event, recorded.sequence, recorded.stored_at_us)
            stored_at[recorded.subject] = recorded.stored_at_us
        assert set(ends.values()) <= {0, 1}, "closed once"
        return swept

    async def settle(self) -> None:
        """Let everything that is owed be done."""
        for _ in range(3):
            self.now_s += 11
            self.rows.reached = await self.log.last_sequence(0)
            await self.sweep()


STEP = st.tuples(
    st.sampled_from(
        [
            "open",
            "open",
            "attach",
            "attach",
            "detach",
            "join",
            "close",
            "lose",
            "sweep",
            "sweep",
            "project",
            "project",
            "wait",
        ]
    ),
    st.sampled_from(SESSIONS),
    st.sampled_from(LIVES),
    st.integers(0, 4),
)
# Steps of one list happen beside each other, the lists one after another.
HISTORY = st.lists(st.lists(STEP, min_size=1, max_size=4), max_size=25)


async def play(history: list[list[tuple[str, str, str, int]]]) -> World:
    world = World()
    for beside in history:
        await asyncio.gather(*(world.do(step) for step in beside))
    return world


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORY)
def test_any_interleaving(history: list[list[tuple[str, str, str, int]]]) -> None:
    async def run() -> None:
        world = await play(history)
        world.check()
        await world.settle()
        world.check()
        for name in SESSIONS:
            state = (await world.runners["one"].load(CHAT.session(name))).state
            assert state.status != "active" or state.incarnation not in world.lost, "swept in the end"
            overdue = state.detached_since_us is not None and (
                world.author.now_us() - state.detached_since_us > (TTL_S + 11) * 1e6
            )
            assert not overdue, "expired in the end"
        last = await world.log.last_sequence(0)
        world.rows.reached = last
        await world.sweep()
        assert await world.log.last_sequence(0) == last, "nothing is done twice"

    asyncio.run(run())


async def test_resumed_elsewhere_before_the_rows_know_it() -> None:
    world = World()
    await world.do(("open", "a", "one", 0))
    await world.do(("lose", "a", "one", 0))
    await world.do(("project", "", "", 4))
    await world.do(("attach", "a", "two", 0))
    await world.sweep()
    assert world.sweeper.done == {}
    assert (await world.runners["two"].load(CHAT.session("a"))).state.incarnation == "two"


async def test_expired_once_and_not_a_moment_too_early() -> None:
    world = World()
    for name in ("a", "b"):
        await world.do(("open", name, "one", 0))
        await world.do(("detach", name, "one", 0))
    world.now_s += TTL_S
    await world.do(("project", "", "", 4))
    await world.sweep()
    assert world.sweeper.done == {}
    await world.do(("attach", "a", "two", 0))  # at the last moment; the rows do not know it yet
    world.now_s += 0.01
    await asyncio.gather(world.sweep(), world.sweep())
    assert world.sweeper.done == {"expired": 1}
    await world.settle()
    assert world.check() == {"Closed": 1}
    assert (await world.runners["one"].load(CHAT.session("a"))).state.status == "active"


async def test_a_sweep_waits_until_the_rows_have_passed_what_the_lost_node_wrote() -> None:
    world = World()
    await world.do(("lose", "", "one", 0))
    await world.do(("project", "", "", 4))
    # Written before the loss was heard of, and not in the rows yet.
    await world.runners["one"].execute(CHAT.session("c"), session.Open("gw", "one", "c1"), actor="x")
    await world.sweep()
    assert world.sweeper.done == {}
    await world.do(("project", "", "", 4))
    await world.sweep()
    assert world.sweeper.done == {"closed": 1}


async def test_what_cannot_be_written_stays_owed() -> None:
    world = World()
    for name in SESSIONS:
        await world.do(("open", name, "one", 0))
    await world.do(("lose", "", "one", 0))
    await world.do(("project", "", "", 4))
    world.log.fail_next(LogUnavailable("away"))
    await world.sweep()
    assert world.sweeper.problem is not None
    assert sum(world.sweeper.done.values()) < 3
    await world.settle()
    assert world.sweeper.done == {"detached": 2, "closed": 1}
    assert world.sweeper.problem is None


async def test_what_has_a_newer_event_than_the_rows_know_is_not_carried() -> None:
    world = World()
    for name in ("a", "b"):
        await world.do(("open", name, "one", 0))
    await world.do(("project", "", "", 4))
    world.now_s += MAX_AGE_S / 2 + 1
    await world.do(("join", "a", "one", 0))
    await world.sweep()
    assert world.sweeper.done == {"carried": 1}
    assert world.check() == {"Carried": 1}
    assert (await world.runners["one"].load(CHAT.session("b"))).sequence == 4
