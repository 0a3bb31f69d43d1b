"""Writing to the streams: one lane per partition for what is unconditional, one question each for what is conditional.

Owns what every answer of the server means, and what to do when there is none. A write is a row in a table with a
deadline, not a future. Knows neither what the events say nor who sends them. ADR 0004 has the reasons.
"""

import asyncio
import contextlib
import random
import re
import secrets
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog

from events.envelope import NewEvent
from events.errors import (
    Conflict,
    HublogError,
    Internal,
    KeyReused,
    LogFull,
    LogOverloaded,
    LogUnavailable,
    OutcomeUnknown,
    PayloadTooLarge,
)
from events.subjects import partition
from service.log.jetstream.client import SyncClient
from service.log.jetstream.read import Reader
from service.log.jetstream.replies import NO_RESPONDERS, ApiError, Replies
from service.log.port import APPEND_EVENTS_MAX, CONDITIONAL_DEADLINE_S, PUBLISH_DEADLINE_S, Done, Stored, must_be

IN_FLIGHT_MAX = 2_000  # per partition and process; the server buffers 10,000 per stream before it answers 429
HELD_MAX = 8_000  # waiting behind them; beyond: LogOverloaded
LANE_BYTES_MAX = 64 * 1024 * 1024  # in flight and held together; beyond: LogOverloaded
ACK_WAIT_S = 3.0  # an answer later than this is taken for lost, and asked for again
CONDITIONAL_WAIT_S = 1.5
TICK_S = 0.25
BATCH_HEADERS_BYTES = 512  # more than the headers of one event of a batch ever take
BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.5

WRONG_LAST_SEQUENCE = 10071
BATCH_HAS_DUPLICATE = 10201
BATCH_INCOMPLETE = 10176
STORE_FAILED = 10077
TOO_LARGE = 10054
SUBJECT_IN_FLIGHT, ID_IN_FLIGHT = 10164, 10158
NOT_NOW = {10008, 10167, 10210, SUBJECT_IN_FLIGHT, ID_IN_FLIGHT}  # nothing stored; the same again, a little later

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

log = structlog.get_logger(__name__)


class Ack(msgspec.Struct, frozen=True, gc=False):
    """The answer to a write."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_acks = msgspec.json.Decoder(Ack)


def header_block(event: NewEvent, extra: str = "") -> bytes:
    """The raw headers of one event. A trace context that is none is left out, as its specification says."""
    if event.traceparent is not None and _TRACEPARENT.fullmatch(event.traceparent):
        extra = f"traceparent: {event.traceparent}\r\n{extra}"
    return f"NATS/1.0\r\nNats-Msg-Id: {event.id}\r\n{extra}\r\n".encode()


def failure(code: int, error: ApiError) -> HublogError:
    """What a refusal that repeating does not mend means to the caller. Unknown codes are never success."""
    if code == STORE_FAILED:
        return LogFull(f"JetStream cannot store: {error.description}", err_code=code)
    if code == TOO_LARGE:
        return PayloadTooLarge(error.description, err_code=code)
    return Internal(f"JetStream refused a write: {code} {error.description}", err_code=code)


class _Write:
    """One unconditional write, from its submission to its outcome."""

    __slots__ = ("done", "event", "give_up_at", "lane", "maybe", "sent_at", "size", "subject", "token", "unclear")

    def __init__(self, lane: "_Lane", subject: str, event: NewEvent, done: Done, now: float) -> None:
        self.lane = lane
        self.subject = subject
        self.event = event
        self.done = done
        self.give_up_at = now + PUBLISH_DEADLINE_S
        self.size = len(event.payload) + 512
        self.token = 0
        self.sent_at = 0.0
        self.unclear = False  # sent, and to be sent again
        self.maybe = False  # a copy that was never answered may be stored

    def answered(self, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and headers.startswith(NO_RESPONDERS):
            self.lane.doubt(self)
            return
        try:
            ack = _acks.decode(payload)
        except msgspec.DecodeError as exc:
            self.lane.finish(self, Internal(f"JetStream answered a write with what is no answer: {exc}"))
            return
        if ack.error is None and ack.seq > 0:
            self.lane.finish(self, Stored(ack.seq, ack.duplicate))
            return
        error = ack.error or ApiError(description="an answer without a sequence")
        if error.err_code in NOT_NOW:
            self.lane.doubt(self)
        else:
            self.lane.finish(self, failure(error.err_code, error))

    def lost(self) -> None:
        self.maybe = True
        self.lane.doubt(self)


class _Lane:
    """First in, first out, for one partition of one process.

    *Open*, it sends at once and keeps up to ``IN_FLIGHT_MAX`` unanswered. With the first answer that is missing or
    says "not now" it is *mending*: what is new is held, what is in flight is awaited, then whatever is unresolved is
    sent again under the same ids, one after the other, in order; then it opens. A write that was refused for the
    moment while later ones of the same flight were taken comes after those: the server gives no way to hold them back.
    """

    def __init__(self, client: SyncClient, replies: Replies) -> None:
        self.client = client
        self.replies = replies
        self.flying: dict[int, _Write] = {}  # by token, in the order of sending
        self.held: deque[_Write] = deque()
        self.bytes = 0
        self.unclear = 0
        self.mending: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.repeated = 0

    def enter(self, write: _Write) -> HublogError | None:
        """Send or hold; or say why not."""
        if self.bytes + write.size > LANE_BYTES_MAX:
            return LogOverloaded("too many bytes wait to be written")
        if self.mending is None and not self.held and len(self.flying) < IN_FLIGHT_MAX:
            error = self._launch(write)
            if error is not None:
                return error
        elif len(self.held) >= HELD_MAX:
            return LogOverloaded("too many events wait to be written")
        else:
            self.held.append(write)
        self.bytes += write.size
        return None

    def _launch(self, write: _Write) -> HublogError | None:
        write.token = self.replies.expect(write)
        error = self._send(write)
        if error is not None:
            self.replies.forget(write.token)
            write.token = 0
            return error
        self.flying[write.token] = write
        return None

    def _send(self, write: _Write) -> HublogError | None:
        event = write.event
        try:
            self.client.send(write.subject, self.replies.subject(write.token), event.payload, header_block(event))
        except HublogError as exc:
            return exc
        write.sent_at = asyncio.get_running_loop().time()
        return None

    def finish(self, write: _Write, outcome: Stored | HublogError) -> None:
        """End a write that is in flight, and let the next one go."""
        if self.flying.pop(write.token, None) is None:
            return
        self.replies.forget(write.token)
        if write.unclear:
            self.unclear -= 1
        self.changed.set()
        if self.held and self.mending is None:
            self.pump()
        self._end(write, outcome)

    def _end(self, write: _Write, outcome: Stored | HublogError) -> None:
        """The one place where ``done`` is called for a write that was taken in."""
        self.bytes -= write.size
        try:
            write.done(outcome)
        except Exception:
            # The caller's defect must not stop the lane of everybody.
            log.exception("log.done_failed")

    def doubt(self, write: _Write) -> None:
        """It has to be sent again."""
        if write.unclear or write.token not in self.flying:
            self.changed.set()
            return
        write.unclear = True
        self.unclear += 1
        self.changed.set()
        if self.mending is None:
            self.mending = asyncio.get_running_loop().create_task(self._mend(), name="log-lane-mending")

    def pump(self) -> None:
        while self.held and len(self.flying) < IN_FLIGHT_MAX:
            write = self.held.popleft()
            error = self._launch(write)
            if error is not None:
                self._end(write, error)

    def refuse_held(self, error: HublogError) -> None:
        while self.held:
            self._end(self.held.popleft(), error)

    def expire(self, now: float) -> None:
        for write in self.flying.values():
            if write.unclear:
                continue
            if write.sent_at + ACK_WAIT_S > now:
                break
            write.lost()
        while self.held and self.held[0].give_up_at <= now:
            self._end(self.held.popleft(), LogUnavailable("it waited too long behind others; it was never sent"))

    async def emptied(self, timeout_s: float) -> None:
        """Return when nothing is in flight any more, or after that time."""
        await self._until(lambda: not self.flying, timeout_s)

    async def _mend(self) -> None:
        try:
            while self.unclear < len(self.flying):
                self.changed.clear()
                await self.changed.wait()  # bounded: every flight has its deadline
            for write in list(self.flying.values()):
                await self._repeat(write)
        except Exception:
            # A defect here would hold the lane for ever, without a word.
            log.exception("log.mending_failed")
            for write in list(self.flying.values()):
                self.finish(write, OutcomeUnknown("the lane failed", event_id=write.event.id))
        self.mending = None
        self.pump()

    async def _repeat(self, write: _Write) -> None:
        clock = asyncio.get_running_loop().time
        backoff_s = BACKOFF_FIRST_S
        while write.token in self.flying:
            if clock() >= write.give_up_at:
                error = OutcomeUnknown if write.maybe else LogUnavailable
                self.finish(write, error(f"no answer within {PUBLISH_DEADLINE_S:g} s", event_id=write.event.id))
                return
            if write.unclear:
                write.unclear = False
                self.unclear -= 1
            if self._send(write) is None:
                self.repeated += 1
                await self._until(lambda: write.unclear or write.token not in self.flying, ACK_WAIT_S)
                if write.token in self.flying and not write.unclear:
                    write.lost()
            elif not write.unclear:
                write.unclear = True
                self.unclear += 1
            if write.token not in self.flying:
                return
            await asyncio.sleep(backoff_s * (0.5 + random.random()))  # noqa: S311 — jitter
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()


class _Question:
    """Waits for the one answer to a conditional write; None when the connection went first."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Ack | None]") -> None:
        self.future = future

    def answered(self, payload: bytes, headers: bytes | None) -> None:
        if self.future.done():
            return
        if headers is not None and headers.startswith(NO_RESPONDERS):
            self.future.set_result(Ack(error=ApiError(503, 10008, "no leader")))
            return
        try:
            self.future.set_result(_acks.decode(payload))
        except msgspec.DecodeError as exc:
            self.future.set_result(Ack(error=ApiError(500, 0, f"no answer: {exc}")))

    def lost(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Writer:
    """All writing of one connection."""

    def __init__(self, client: SyncClient, replies: Replies, reader: Reader, partitions: int) -> None:
        self._client = client
        self._replies = replies
        self._reader = reader
        self._lanes = [_Lane(client, replies) for _ in range(partitions)]
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._appending = 0
        self._idle = asyncio.Event()
        client.observe(self)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        """See ``EventLog.submit``. ``done`` is never called from inside."""
        must_be(subject, conditional=False)
        loop = asyncio.get_running_loop()
        if self._closed or not self._client.connected:
            loop.call_soon(done, LogUnavailable("there is no connection to NATS; nothing was sent"))
            return
        lane = self._lanes[partition(subject)]
        error = lane.enter(_Write(lane, subject, event, done, loop.time()))
        if error is not None:
            loop.call_soon(done, error)
        elif self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick)

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        """:meth:`submit`, awaited."""
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def done(outcome: Stored | HublogError) -> None:
            if future.done():
                return
            if isinstance(outcome, Stored):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self.submit(subject, event, done)
        return await future

    def _tick(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for lane in self._lanes:
            lane.expire(loop.time())
        if any(lane.flying or lane.held for lane in self._lanes):
            self._timer = loop.call_later(TICK_S, self._tick)

    def lost(self) -> None:
        for lane in self._lanes:
            lane.refuse_held(LogUnavailable("the connection to NATS was lost; it was never sent"))

    def regained(self) -> None:
        """The lanes try by themselves."""

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        """See ``EventLog.append``.

        A write that was not answered is looked for, and if it is not there it is sent again: the condition and the ids
        are the same, so of all copies at most one is ever stored, however late one arrives, and the answer to the last
        one is final.
        """
        must_be(subject, conditional=True)
        if not 1 <= len(events) <= APPEND_EVENTS_MAX:
            raise ValueError(f"1 to {APPEND_EVENTS_MAX} events in one append, got {len(events)}")
        self._appending += 1
        try:
            return await self._append(subject, events, expected)
        finally:
            self._appending -= 1
            if self._appending == 0:
                self._idle.set()

    async def _append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        clock = asyncio.get_running_loop().time
        # The last attempt begins so early that it can be waited for in full: a hasty one would leave a doubt behind.
        last_start_at = clock() + CONDITIONAL_DEADLINE_S - CONDITIONAL_WAIT_S
        backoff_s = BACKOFF_FIRST_S
        maybe = False  # a copy may be stored, or may still arrive
        problem: HublogError = LogUnavailable("there is no connection to NATS; nothing was sent")
        while not self._closed or (maybe and self._client.connected):
            if self._client.connected:
                ack = await self._ask(subject, events, expected)
                if ack is None:
                    maybe = True
                else:
                    try:
                        verdict = await self._judge(ack, subject, events, expected, maybe=maybe)
                    except LogUnavailable as exc:  # while looking for what may be stored
                        maybe, verdict = True, exc
                    if isinstance(verdict, int):
                        return verdict
                    problem = verdict
            elif not maybe:
                raise problem
            if clock() >= last_start_at:
                break
            await asyncio.sleep(backoff_s * (0.5 + random.random()))  # noqa: S311 — jitter
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        if maybe:
            raise OutcomeUnknown(f"no answer within {CONDITIONAL_DEADLINE_S:g} s", subject=subject)
        raise problem

    async def _judge(
        self, ack: Ack, subject: str, events: Sequence[NewEvent], expected: int, *, maybe: bool
    ) -> int | HublogError:
        """The sequence; or a problem that may pass. Raises: what is final."""
        error = ack.error
        if error is None and ack.seq > 0:
            if ack.duplicate:
                await self._confirm(ack.seq, subject, events[-1])
            return ack.seq
        if error is None:
            raise Internal("JetStream answered a write without a sequence")
        code = error.err_code
        if code in {WRONG_LAST_SEQUENCE, BATCH_HAS_DUPLICATE, BATCH_INCOMPLETE}:
            if maybe or code != WRONG_LAST_SEQUENCE:
                found = await self._look_for(subject, events, expected)
                if found is not None:
                    return found
            if code == BATCH_INCOMPLETE:
                return LogUnavailable(f"the batch was abandoned: {error.description}", err_code=code)
            raise Conflict("the subject has moved on", subject=subject, expected=expected, err_code=code)
        if code in {SUBJECT_IN_FLIGHT, ID_IN_FLIGHT}:
            problem = Conflict("another write to the subject is under way", subject=subject, err_code=code)
            if maybe:
                return problem
            raise problem
        if code in NOT_NOW:
            what: type[HublogError] = LogUnavailable if error.code == 503 else LogOverloaded
            return what(f"JetStream does not take writes: {error.description}", err_code=code)
        raise failure(code, error)

    async def _ask(self, subject: str, events: Sequence[NewEvent], expected: int) -> Ack | None:
        """Send once; the answer, or None if there is none."""
        question = _Question(asyncio.get_running_loop().create_future())
        token = self._replies.expect(question)
        try:
            self._send_all(subject, self._replies.subject(token), events, expected)
            async with asyncio.timeout(CONDITIONAL_WAIT_S):
                return await question.future
        except TimeoutError:
            return None
        finally:
            self._replies.forget(token)

    def _send_all(self, subject: str, reply: str, events: Sequence[NewEvent], expected: int) -> None:
        condition = f"Nats-Expected-Last-Subject-Sequence: {expected}\r\n"
        if len(events) == 1:
            self._client.send(subject, reply, events[0].payload, header_block(events[0], condition))
            return
        for event in events:  # all before the first: half a batch would lie about in the server for a while
            self._client.must_fit(len(event.payload) + BATCH_HEADERS_BYTES)
        # A new name per attempt: the server may still hold the beginning of the last one.
        batch = f"Nats-Batch-Id: {secrets.token_hex(12)}\r\n"
        for number, event in enumerate(events, 1):
            extra = f"{condition if number == 1 else ''}{batch}Nats-Batch-Sequence: {number}\r\n"
            last = number == len(events)
            block = header_block(event, extra + "Nats-Batch-Commit: 1\r\n" if last else extra)
            self._client.send(subject, reply if last else "", event.payload, block)

    async def _look_for(self, subject: str, events: Sequence[NewEvent], expected: int) -> int | None:
        """The sequence of the last of the events, if they are stored: then they directly follow what was expected."""
        first = await self._reader.next_on(subject, expected + 1)
        if first is None or event_id(first.headers) != events[0].id:
            return None
        return first.sequence + len(events) - 1

    async def _confirm(self, sequence: int, subject: str, event: NewEvent) -> None:
        stored = await self._reader.at(partition(subject), sequence)
        if stored is not None and (stored.subject != subject or event_id(stored.headers) != event.id):
            raise KeyReused("the event's id is known on another subject", event_id=event.id, sequence=sequence)

    async def close(self, deadline_s: float) -> None:
        """Take nothing more; wait for what is in flight, at most so long; then say of the rest that nobody knows."""
        self._closed = True
        for lane in self._lanes:
            lane.refuse_held(LogUnavailable("the log is closing; it was never sent"))
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.emptied(deadline_s))
            if self._appending:
                self._idle.clear()
                group.create_task(_at_most(self._idle, deadline_s))
        if self._timer is not None:
            self._timer.cancel()
        for lane in self._lanes:
            if lane.mending is not None:
                lane.mending.cancel()
            for write in list(lane.flying.values()):
                lane.finish(write, OutcomeUnknown("the log was closed before the answer came"))


async def _at_most(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def event_id(headers: bytes) -> str:
    """The id in a raw header block; empty if there is none."""
    at = headers.find(b"\r\nNats-Msg-Id: ")
    if at < 0:
        return ""
    at += 15
    return headers[at : headers.find(b"\r\n", at)].decode(errors="replace")
