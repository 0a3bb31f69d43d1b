"""The log in memory, for tests: every duty of the port, and handles on what goes wrong in life.

Everything happens on one loop and in one order: what is stored is heard by subscribers, and answered, in later turns of
the loop, first the one and then the other. Nothing survives the object.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import structlog

from events import trace
from events.envelope import NewEvent, Recorded
from events.errors import Conflict, HublogError, KeyReused, LogRegressed, LogUnavailable, PayloadTooLarge
from events.ids import Epoch
from events.subjects import partition as partition_of
from service.log.port import APPEND_EVENTS_MAX, Done, OnDoubt, OnMessage, Stored, must_be
from service.log.tally import Tally

IDLE_S = 1.0
PAYLOAD_BYTES_MAX = 1024 * 1024  # as NATS, unless told otherwise
_BEYOND = 1 << 63

log = structlog.get_logger(__name__)


class _Partition:
    """One sequence of events. ``first`` is the sequence of ``events[0]``."""

    def __init__(self) -> None:
        self.first = 1
        self.events: list[Recorded] = []
        self.by_subject: dict[str, list[int]] = {}
        self.by_id: dict[str, int] = {}
        self.grown = asyncio.Event()

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1

    def at(self, sequence: int) -> Recorded | None:
        return self.events[sequence - self.first] if self.first <= sequence <= self.last else None

    def last_of(self, subject: str, up_to: int = _BEYOND) -> Recorded | None:
        sequences = self.by_subject.get(subject, [])
        place = bisect_right(sequences, up_to)
        return self.at(sequences[place - 1]) if place else None


class _Subscription:
    __slots__ = ("_log", "on_message", "subject")

    def __init__(self, log: "MemoryEventLog", subject: str, on_message: OnMessage) -> None:
        self._log = log
        self.subject = subject
        self.on_message = on_message

    def unsubscribe(self) -> None:
        self._log.subscriptions.pop(self, None)


class MemoryEventLog:
    """``EventLog``, ``LiveFeed`` and the bucket of leases in one object."""

    def __init__(
        self,
        partitions: int = 1,
        *,
        epoch: str = "mema",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._epoch = Epoch(epoch)
        self._now_us = now_us
        self._partitions = [_Partition() for _ in range(partitions)]
        self._connected = True
        self._closed = False
        self.tally = Tally()
        self._observers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._doubters: list[tuple[int, OnDoubt]] = []
        self._failures: deque[HublogError] = deque()
        self._dropping = 0
        self._leases: dict[str, tuple[bytes, int, int]] = {}
        self.subscriptions: dict[_Subscription, None] = {}  # in the order of subscribing

    # -- what goes wrong in life, for tests

    def fail_next(self, error: HublogError) -> None:
        """The next append or submit stores nothing and ends in ``error``. Several calls queue up."""
        self._failures.append(error)

    def drop_next_live(self, count: int = 1) -> None:
        """The next ``count`` events are stored, but nobody hears of them."""
        self._dropping += count

    def disconnect(self) -> None:
        """Everything is refused, and what is stored (by :meth:`store`) is not heard."""
        if self._connected:
            self._connected = False
            for lost, _ in self._observers:
                lost()

    def reconnect(self) -> None:
        if not self._connected and not self._closed:
            self._connected = True
            for _, regained in self._observers:
                regained()

    def change_leader(self, partition: int) -> None:
        for of, on_doubt in self._doubters:
            if of == partition:
                on_doubt("leader changed")

    def forget(self, partition: int, before: int) -> None:
        """Drop the events of a partition below a sequence, as age does."""
        part = self._partitions[partition]
        gone = max(0, min(before, part.last + 1) - part.first)
        del part.events[:gone]
        part.first += gone
        for subject, sequences in list(part.by_subject.items()):
            part.by_subject[subject] = [sequence for sequence in sequences if sequence >= part.first]

    def store(self, subject: str, event: NewEvent) -> int:
        """Store as another process would, whether connected or not, unconditionally."""
        part = self._partitions[partition_of(subject)]
        before = part.last_of(subject)
        sequence = part.last + 1
        payload, traced = event.payload, ""
        if event.traceparent is not None and trace.valid(event.traceparent):
            payload, traced = trace.Traced(payload, event.traceparent), trace.header(event.traceparent)
        headers = f"NATS/1.0\r\nNats-Msg-Id: {event.id}\r\n{traced}\r\n".encode()
        part.events.append(Recorded(subject, sequence, self._now_us(), event.payload, headers))
        part.by_subject.setdefault(subject, []).append(sequence)
        part.by_id[event.id] = sequence
        part.grown.set()
        if self._dropping:
            self._dropping -= 1
        elif self._connected:
            previous = before.sequence if before is not None else 0
            # As on a server, only those who had subscribed by now will hear of it.
            heard = [subscription for subscription in self.subscriptions if matches(subscription.subject, subject)]
            asyncio.get_running_loop().call_soon(self._hear, heard, subject, sequence, previous, payload)
        return sequence

    def _hear(self, heard: list["_Subscription"], subject: str, sequence: int, previous: int, payload: bytes) -> None:
        if not self._connected:
            return
        for subscription in heard:
            if subscription in self.subscriptions:
                try:
                    subscription.on_message(subject, sequence, previous, payload)
                except Exception:
                    log.exception("log.callback_failed", subject=subject)

    # -- EventLog

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    @property
    def connected(self) -> bool:
        return self._connected

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        must_be(subject, conditional=True)
        if not 1 <= len(events) <= APPEND_EVENTS_MAX:
            raise ValueError(f"1 to {APPEND_EVENTS_MAX} events in one append, got {len(events)}")
        await self._turn()
        for event in events:
            _fits(event)
        part = self._partitions[partition_of(subject)]
        found = part.last_of(subject)
        if (found.sequence if found is not None else 0) != expected:
            raise Conflict("the subject has moved on", subject=subject, expected=expected)
        known = [part.by_id[event.id] for event in events if event.id in part.by_id]
        if known and len(events) > 1:
            raise Conflict("the subject has moved on", subject=subject, expected=expected)
        if known:
            stored = part.at(known[0])
            if stored is not None and stored.subject != subject:
                raise KeyReused("the event's id is known on another subject", event_id=events[0].id)
            return known[0]
        for event in events:
            self.store(subject, event)
        sequence = part.last
        await asyncio.sleep(0)
        return sequence

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        must_be(subject, conditional=False)
        loop = asyncio.get_running_loop()
        error = self._failures.popleft() if self._failures else None
        if not self._connected:
            error = LogUnavailable("there is no connection; nothing was sent")
        try:
            _fits(event)
        except PayloadTooLarge as exc:
            error = exc
        if error is not None:
            loop.call_soon(done, error)
            return
        known = self._partitions[partition_of(subject)].by_id.get(event.id)
        outcome = Stored(known, duplicate=True) if known is not None else Stored(self.store(subject, event))
        loop.call_soon(done, outcome)

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        future: asyncio.Future[Stored | HublogError] = asyncio.get_running_loop().create_future()
        self.submit(subject, event, lambda outcome: None if future.done() else future.set_result(outcome))
        outcome = await future
        if isinstance(outcome, HublogError):
            raise outcome
        return outcome

    async def last(self, subject: str) -> Recorded | None:
        await self._turn(reading=True)
        return self._partitions[partition_of(subject)].last_of(subject)

    async def last_many(self, subjects: Iterable[str], up_to: int | None = None) -> dict[str, Recorded]:
        await self._turn(reading=True)
        limit = _BEYOND if up_to is None else up_to
        found = ((subject, self._partitions[partition_of(subject)].last_of(subject, limit)) for subject in subjects)
        return {subject: event for subject, event in found if event is not None}

    async def last_sequence(self, partition: int) -> int:
        await self._turn(reading=True)
        return self._partitions[partition].last

    async def first_sequence(self, partition: int) -> int:
        await self._turn(reading=True)
        return self._partitions[partition].first

    async def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        await self._turn(reading=True)
        part = self._partitions[partition_of(subject)]
        for sequence in range(max(first, part.first), min(last, part.last) + 1):
            found = part.at(sequence)
            if found is not None and matches(subject, found.subject):
                yield found

    async def follow(
        self, partition: int, after: int, *, batch_max: int = APPEND_EVENTS_MAX
    ) -> AsyncIterator[list[Recorded]]:
        part = self._partitions[partition]
        while True:
            if after > part.last:
                raise LogRegressed(f"the partition ends at {part.last}, it was read up to {after}")
            if after + 1 < part.first:
                raise LogRegressed(f"the partition begins at {part.first}, wanted is {after + 1}")
            if self._connected and after < part.last:
                at = after + 1 - part.first
                batch = part.events[at : at + batch_max]
                after += len(batch)
                yield batch
                continue
            part.grown.clear()
            try:
                async with asyncio.timeout(IDLE_S):
                    await part.grown.wait()
            except TimeoutError:
                yield []

    async def _turn(self, *, reading: bool = False) -> None:
        """What a round trip does to the caller: others come first, and it may fail."""
        if self._failures and not reading:
            raise self._failures.popleft()
        if not self._connected:
            raise LogUnavailable("there is no connection")
        await asyncio.sleep(0)
        if not self._connected:
            raise LogUnavailable("the connection was lost")

    # -- LiveFeed

    def subscribe(self, subject: str, on_message: OnMessage) -> _Subscription:
        subscription = _Subscription(self, subject, on_message)
        self.subscriptions[subscription] = None
        return subscription

    async def flush(self) -> None:
        await self._turn(reading=True)

    def observe(self, on_disconnected: Callable[[], None], on_connected: Callable[[], None]) -> None:
        self._observers.append((on_disconnected, on_connected))

    def doubt(self, partition: int, on_doubt: OnDoubt) -> None:
        self._doubters.append((partition, on_doubt))

    # -- leases

    async def go_elsewhere(self) -> None:
        """There is nowhere else."""

    async def lease_put(self, key: str, value: bytes) -> int:
        await self._turn(reading=True)
        revision = max((entry[2] for entry in self._leases.values()), default=0) + 1
        self._leases[key] = (value, self._now_us(), revision)
        return revision

    async def lease_get(self, key: str) -> tuple[bytes, int] | None:
        return (await self.lease_all()).get(key)

    async def lease_all(self) -> dict[str, tuple[bytes, int]]:
        await self._turn(reading=True)
        return {key: (value, at_us) for key, (value, at_us, _) in self._leases.items()}

    async def close(self) -> None:
        """Everything is refused from now on; what was taken in has been answered."""
        await asyncio.sleep(0)
        self.disconnect()
        self._closed = True


def _fits(event: NewEvent) -> None:
    if len(event.payload) > PAYLOAD_BYTES_MAX - 1024:
        raise PayloadTooLarge(f"{len(event.payload)} bytes are more than the log takes")


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one that a pattern with the wildcards of NATS means."""
    if pattern == subject:
        return True
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted[:-1], given, strict=False))
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))
