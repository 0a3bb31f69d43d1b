"""Commands on one aggregate: load, decide, append conditionally, and again if somebody else was quicker.

Owns the serialisation of commands inside this process and the retries between processes. Refuses to know what an
aggregate is: deciding and loading are arguments. Conditional subjects only.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import msgspec

from events import codec, session
from events.envelope import Recorded
from events.errors import Conflict, HublogError, OutcomeUnknown, Refused, Unavailable
from service.breaker import RetryBudget
from service.log.author import Author
from service.log.port import EventLog

CONFLICT_DEADLINE_S = 2.0
BACKOFF_S = (0.005, 0.040)
INSIST_BACKOFF_S = (0.1, 1.0)
# Of all commands of a runner: a fraction of what the log takes, so that repeats never crowd out what is new.
REPEATS_PER_S = 1_000.0
REPEATS_AT_ONCE = 1_000.0

State = TypeVar("State")
Command_contra = TypeVar("Command_contra", contravariant=True)
Command = TypeVar("Command")


class Aggregate(Protocol[State, Command_contra]):
    """How one kind of aggregate is decided and loaded."""

    def decide(self, state: State, command: Command_contra) -> tuple[codec.Event, ...]: ...

    def load(self, recorded: Recorded | None) -> State:
        """The state from the last event of its subject."""
        ...

    def after(self, event: codec.Event, sequence: int, stored_at_us: int) -> State:
        """The state that an event, now stored, carries."""
        ...


class Known(msgspec.Struct, Generic[State], frozen=True):
    """A state and the sequence of the event that it was read from (0: none)."""

    state: State
    sequence: int


class Executed(msgspec.Struct, Generic[State], frozen=True):
    """What is true after a command, what it wrote (nothing, when it was so already), and what it was decided on."""

    known: Known[State]
    events: tuple[codec.Event, ...]
    before: Known[State]


class SessionAggregate:
    """Sessions, as the runner sees them."""

    def decide(self, state: session.State, command: session.Command) -> tuple[codec.Event, ...]:
        return session.decide(state, command)

    def load(self, recorded: Recorded | None) -> session.State:
        return codec.session_state(recorded)

    def after(self, event: codec.Event, sequence: int, stored_at_us: int) -> session.State:
        assert isinstance(event, session.Event)
        return session.settle(event, sequence, stored_at_us)


class CommandRunner(Generic[State, Command]):
    """Runs the commands of one kind of aggregate."""

    def __init__(self, log: EventLog, author: Author, aggregate: Aggregate[State, Command]) -> None:
        self._log = log
        self._author = author
        self._aggregate = aggregate
        # Lock and how many want it: gone again with the last of them.
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self.conflicts = 0
        self.repeats = RetryBudget(REPEATS_PER_S, REPEATS_AT_ONCE, time.monotonic())

    async def load(self, subject: str) -> Known[State]:
        """The state as the leader knows it."""
        last = await self._log.last(subject)
        return Known(self._aggregate.load(last), last.sequence if last is not None else 0)

    async def execute(
        self,
        subject: str,
        command: Command,
        *,
        actor: str,
        hint: Callable[[], Known[State] | None] | None = None,
        insist: bool = False,
        wanted: Callable[[], bool] = lambda: True,
        expect: Callable[[Known[State]], None] = lambda _known: None,
    ) -> Executed[State]:
        """Decide ``command`` on the state of ``subject`` and append what happens.

        ``hint`` gives a state that may be stale: it saves a read, and whatever it refuses or calls done is checked
        on the leader before it is believed. With ``insist`` a command is repeated until the log answers; cancel it to
        give up, or let it not be ``wanted`` any more: then what stopped it is raised, OutcomeUnknown if any attempt may
        be stored. All repeats share one budget: beyond it a command ends as Conflict, and one that insists waits.
        ``expect`` is called before each append with the state that it goes by; what it raises is as if the log did.

        Raises: Refused (and its kin, from decide), Conflict (others were quicker for 2 s, or very many repeat at once),
        Unavailable, OutcomeUnknown.
        """
        async with self._alone(subject):
            known = hint() if hint is not None else None
            deadline_s = time.monotonic() + CONFLICT_DEADLINE_S
            unknown: OutcomeUnknown | None = None
            while True:
                try:
                    return await self._attempt(subject, command, actor, known, expect)
                except Conflict as exc:
                    stopped: HublogError = exc
                    self.conflicts += 1
                    may = self._may_repeat()
                    if not insist and (not may or time.monotonic() > deadline_s):
                        raise
                    await asyncio.sleep(random.uniform(*BACKOFF_S))  # noqa: S311  jitter is no secret
                except (Unavailable, OutcomeUnknown) as exc:
                    if not insist:
                        raise
                    stopped, may = exc, False
                    unknown = exc if isinstance(exc, OutcomeUnknown) else unknown
                while wanted() and not may:
                    await asyncio.sleep(random.uniform(*INSIST_BACKOFF_S))  # noqa: S311
                    may = self._may_repeat()
                if not wanted():
                    raise unknown or stopped
                known = None

    def _may_repeat(self) -> bool:
        may = self.repeats.take(time.monotonic())
        if not may:
            self._log.tally.repeats_refused += 1
        return may

    async def _attempt(
        self,
        subject: str,
        command: Command,
        actor: str,
        hint: Known[State] | None,
        expect: Callable[[Known[State]], None],
    ) -> Executed[State]:
        known, events = hint, self._foresee(hint, command)
        if known is None or not events:
            known = await self.load(subject)
            events = self._aggregate.decide(known.state, command)
        if not events:
            return Executed(known, (), known)
        expect(known)
        written = [self._author.write(event, actor=actor) for event in events]
        sequence = await self._log.append(subject, written, known.sequence)
        state = self._aggregate.after(events[-1], sequence, self._author.now_us())
        return Executed(Known(state, sequence), events, known)

    def _foresee(self, known: Known[State] | None, command: Command) -> tuple[codec.Event, ...]:
        """What the hint would lead to; ``()`` where only the leader can say."""
        if known is None:
            return ()
        try:
            return self._aggregate.decide(known.state, command)
        except Refused:
            return ()

    @asynccontextmanager
    async def _alone(self, subject: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(subject, (asyncio.Lock(), 0))
        self._locks[subject] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[subject]
            if users == 1:
                del self._locks[subject]
            else:
                self._locks[subject] = (lock, users - 1)
