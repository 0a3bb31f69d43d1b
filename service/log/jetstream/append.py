"""Writing to the streams: lanes for what is unconditional, one question at a time for what is conditional.

Owns what becomes of a conditional write, answered or not. Knows neither what the events say nor who sends them.
ADR 0004 has the reasons.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Sequence
from time import monotonic

import msgspec

from events.envelope import NewEvent
from events.errors import Conflict, HublogError, Internal, KeyReused, LogOverloaded, LogUnavailable, OutcomeUnknown
from events.subjects import partition
from service.log.jetstream.answers import (
    BATCH_HAS_DUPLICATE,
    BATCH_INCOMPLETE,
    ID_IN_FLIGHT,
    NOT_NOW,
    SUBJECT_IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    Ack,
    acks,
    event_id,
    failure,
    header_block,
)
from service.log.jetstream.client import SyncClient
from service.log.jetstream.lane import BACKOFF_FIRST_S, BACKOFF_MAX_S, Lane, Write
from service.log.jetstream.read import Reader
from service.log.jetstream.replies import NO_LEADER, NO_RESPONDERS, ApiError, Replies
from service.log.port import APPEND_EVENTS_MAX, CONDITIONAL_DEADLINE_S, Done, Stored, must_be
from service.log.tally import STORED, Tally
from service.telemetry.tracing import OFF, Tracing

CONDITIONAL_WAIT_S = 1.5  # an answer later than this is taken for lost
TICK_S = 0.25
BATCH_HEADERS_BYTES = 512  # more than the headers of one event of a batch ever take


class _Question:
    """Waits for the one answer to a conditional write; None when the connection went first."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Ack | None]") -> None:
        self.future = future

    def answered(self, payload: bytes, headers: bytes | None) -> None:
        if self.future.done():
            return
        if headers is not None and headers.startswith(NO_RESPONDERS):
            self.future.set_result(Ack(error=ApiError(503, NO_LEADER, "no leader")))
            return
        try:
            self.future.set_result(acks.decode(payload))
        except msgspec.DecodeError as exc:
            self.future.set_result(Ack(error=ApiError(500, 0, f"no answer: {exc}")))

    def lost(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Doubt:
    """Whether an answer to a write did not come."""

    __slots__ = ("was",)

    def __init__(self) -> None:
        self.was = False


class Writer:
    """All writing of one connection."""

    def __init__(
        self, client: SyncClient, replies: Replies, reader: Reader, partitions: int, tracing: Tracing = OFF
    ) -> None:
        self._client = client
        self._replies = replies
        self._reader = reader
        self._tracing = tracing
        self.tally = Tally()
        self._lanes = [Lane(client, replies, self.tally) for _ in range(partitions)]
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._appending = 0
        self._idle = asyncio.Event()
        client.observe(self)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        """See ``EventLog.submit``. ``done`` is never called from inside."""
        must_be(subject, conditional=False)
        if event.traceparent is not None:
            event, done = self._traced(subject, event, done)
        loop = asyncio.get_running_loop()
        if self._closed or not self._client.connected:
            self.tally.refused(LogUnavailable.code)
            loop.call_soon(done, LogUnavailable("there is no connection to NATS; nothing was sent"))
            return
        lane = self._lanes[partition(subject)]
        error = lane.enter(Write(lane, subject, event, done, loop.time()))
        if error is not None:
            self.tally.refused(error.code)
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

    def _traced(self, subject: str, event: NewEvent, done: Done) -> tuple[NewEvent, Done]:
        """The same write as a span: what becomes of the event anywhere is its child."""
        assert event.traceparent is not None
        span = self._tracing.child("append", "producer", event.traceparent, {"hublog.subject": subject})
        if span is None:
            return event, done

        def told(outcome: Stored | HublogError) -> None:
            if isinstance(outcome, Stored):
                span.note("hublog.sequence", outcome.sequence)
                span.end()
            else:
                span.end(outcome.code)
            done(outcome)

        return msgspec.structs.replace(event, traceparent=span.traceparent), told

    def _tick(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for lane in self._lanes:
            lane.expire(loop.time())
        if any(lane.flying or lane.held for lane in self._lanes):
            self._timer = loop.call_later(TICK_S, self._tick)

    def lost(self) -> None:
        self.refuse_waiting(LogUnavailable("the connection to NATS was lost; it was never sent"))

    def refuse_waiting(self, error: HublogError) -> None:
        """End what is held in the lanes and was never sent."""
        for lane in self._lanes:
            lane.refuse_held(error)

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
            if events[0].traceparent is None:
                return await self._append_counted(subject, events, expected)
            return await self._append_traced(subject, events, expected, events[0].traceparent)
        finally:
            self._appending -= 1
            if self._appending == 0:
                self._idle.set()

    async def _append_traced(self, subject: str, events: Sequence[NewEvent], expected: int, traceparent: str) -> int:
        span = self._tracing.child("append", "producer", traceparent, {"hublog.subject": subject})
        if span is None:
            return await self._append_counted(subject, events, expected)
        code: str | None = Internal.code
        try:
            events = [msgspec.structs.replace(event, traceparent=span.traceparent) for event in events]
            sequence = await self._append_counted(subject, events, expected)
            span.note("hublog.sequence", sequence)
            code = None
        except HublogError as error:
            code = error.code
            raise
        else:
            return sequence
        finally:
            span.end(code)

    async def _append_counted(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        began_s, doubt, ended = monotonic(), _Doubt(), Internal.code
        try:
            sequence = await self._append(subject, events, expected, doubt)
            ended = STORED
        except HublogError as error:
            ended = error.code
            raise
        else:
            return sequence
        finally:
            self.tally.ended("conditional", ended, began_s, doubted=doubt.was)

    async def _append(self, subject: str, events: Sequence[NewEvent], expected: int, doubt: "_Doubt") -> int:
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
                    maybe = doubt.was = True
                else:
                    try:
                        verdict = await self._judge(ack, subject, events, expected, maybe=maybe)
                    except LogUnavailable as exc:  # while looking for what may be stored
                        maybe = doubt.was = True
                        verdict = exc
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
        refused = failure(code, error)
        if not maybe:
            raise refused
        found = await self._look_for(subject, events, expected)
        return refused if found is None else found

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
        self.refuse_waiting(LogUnavailable("the log is closing; it was never sent"))
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
