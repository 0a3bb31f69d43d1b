"""The log as the rest of the service sees it: duties, not drivers.

Two faces over one connection: ``EventLog`` writes and reads what is stored, ``LiveFeed`` hears what is being stored.
Both speak subjects of ``events.subjects`` (always the ``ev.`` form) and raise only errors of ``events.errors``. Every
implementation passes ``tests/contract``.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from events.envelope import NewEvent, Recorded
from events.errors import HublogError
from events.ids import Epoch
from service.log.tally import Tally

APPEND_EVENTS_MAX = 1_000  # the broker's bound on one atomic batch
PUBLISH_DEADLINE_S = 60.0  # an unconditional write is repeated under its id this long, then reported as unknown
CONDITIONAL_DEADLINE_S = 5.0  # an unanswered conditional write is looked for this long


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Where an event is. ``duplicate``: it was there before this call, under the same id."""

    sequence: int
    duplicate: bool = False


Done = Callable[[Stored | HublogError], None]
# (subject in the ev. form, sequence, previous sequence on that subject or 0, payload). Called synchronously, in order.
# The payload of a traced event is an ``events.trace.Traced``.
OnMessage = Callable[[str, int, int, bytes], None]
OnDoubt = Callable[[str], None]


def must_be(subject: str, *, conditional: bool) -> None:
    """Raises: ValueError when a subject is about to be written the way that only the other kind may be (ADR 0004)."""
    if (subject.endswith(".log") or subject.split(".", 4)[3] == "r") != conditional:
        raise ValueError(f"{subject} is written {'un' if conditional else ''}conditionally")


class EventLog(Protocol):
    """P partitions, each a totally ordered, durable sequence of events.

    Conditional subjects (``.s.<id>.log``, ``.r.<code>``) are written by :meth:`append` only, all others by
    :meth:`submit` or :meth:`publish` only: mixing them on one subject is unsound (ADR 0004).
    """

    @property
    def epoch(self) -> Epoch: ...

    @property
    def partitions(self) -> int: ...

    @property
    def tally(self) -> Tally:
        """What became of the writes of this process, for whoever exports it; commands count in it what they give up."""
        ...

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        """Write 1 to 1,000 events to one subject, all or none, if its last sequence is ``expected`` (0: none yet).

        Returns the sequence of the last of them (they are contiguous). An unclear outcome is resolved by reading back
        and comparing event ids before this returns.

        Raises: Conflict (the subject moved; re-read and re-decide), LogUnavailable (not stored), LogOverloaded,
        LogFull, OutcomeUnknown (could not be resolved in time).
        """
        ...

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        """Write one event unconditionally; ``done`` is called exactly once, on the loop, with where it is or why not.

        Events submitted to one partition are stored in the order of the calls: one lane, first in, first out. An
        unclear outcome is resolved by publishing the same id again until answered, at most ``PUBLISH_DEADLINE_S``.
        What was never sent while the connection is down is refused at once as LogUnavailable. Makes no task.
        """
        ...

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        """:meth:`submit`, awaited. Raises: what ``done`` would be given."""
        ...

    async def last(self, subject: str) -> Recorded | None:
        """The last event of one literal subject, as the leader knows it."""
        ...

    async def last_many(self, subjects: Iterable[str], up_to: int | None = None) -> dict[str, Recorded]:
        """The last event of each of many literal subjects of one partition, at or before ``up_to``.

        Answered by any replica and so possibly late, unless ``up_to`` is a sequence the leader has named. Any number of
        subjects; subjects without an event are left out.
        """
        ...

    async def last_sequence(self, partition: int) -> int:
        """The last sequence of a partition, as the leader knows it; 0 when empty."""
        ...

    async def first_sequence(self, partition: int) -> int:
        """The first sequence that a partition still holds (last + 1 when empty)."""
        ...

    def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        """The events of one subject (or a wildcard, e.g. ``ev.0.>``) with first ≤ sequence ≤ last, in order.

        Reads until it covers ``last``: a replica that lags is waited for. Raises: LogUnavailable.
        """
        ...

    def follow(self, partition: int, after: int, *, batch_max: int = 1_000) -> AsyncIterator[list[Recorded]]:
        """Every event of a partition with sequence > ``after``, in order, in batches, for ever.

        Yields an empty list when nothing came for a second, so that callers can look up. Survives reconnects. Raises
        LogRegressed when the stream is shorter than ``after``, was made anew, or a sequence is missing that should be
        there.
        """
        ...


class Subscription(Protocol):
    """A handle that :meth:`LiveFeed.subscribe` gave."""

    def unsubscribe(self) -> None: ...


class LiveFeed(Protocol):
    """What is being stored, at most once, as it happens. Holes are possible; finding them is delivery's duty."""

    def subscribe(self, subject: str, on_message: OnMessage) -> Subscription:
        """Hear one subject (wildcards allowed). Effective before any later append or submit of the same process."""
        ...

    async def flush(self) -> None:
        """Return when the server has seen every earlier subscribe. Raises: LogUnavailable."""
        ...

    def observe(self, on_disconnected: Callable[[], None], on_connected: Callable[[], None]) -> None:
        """Call these, synchronously, as the connection goes and comes: ``on_disconnected`` before any later message."""
        ...

    def doubt(self, partition: int, on_doubt: OnDoubt) -> None:
        """Call this, synchronously, with a reason, when events of a partition may have gone unheard although the
        connection stands: its stream has another leader, or the servers of a cluster have lost or found each other.

        Notice comes soon, not first: an event of the new leader may overtake it. What was stored and not heard is in
        the log by then.
        """
        ...

    @property
    def connected(self) -> bool: ...
