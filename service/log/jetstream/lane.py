"""Unconditional writes: one lane per partition of a process, first in, first out.

Owns the table of what is in flight and what is done about an answer that does not come. A write is a row with a
deadline, not a future; a task runs only while a lane mends itself. ADR 0004 has the reasons.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from time import monotonic

import msgspec
import structlog

from events.envelope import NewEvent
from events.errors import HublogError, Internal, LogOverloaded, LogUnavailable, OutcomeUnknown
from service.log.jetstream.answers import NOT_NOW, acks, failure, header_block
from service.log.jetstream.client import SyncClient
from service.log.jetstream.replies import NO_RESPONDERS, ApiError, Replies
from service.log.port import PUBLISH_DEADLINE_S, Done, Stored
from service.log.tally import DUPLICATE, STORED, Tally

IN_FLIGHT_MAX = 2_000  # per partition and process; the server buffers 10,000 per stream before it answers 429
HELD_MAX = 8_000  # waiting behind them; beyond: LogOverloaded
LANE_BYTES_MAX = 64 * 1024 * 1024  # in flight and held together; beyond: LogOverloaded
ACK_WAIT_S = 3.0  # an answer later than this is taken for lost, and asked for again
BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.5

log = structlog.get_logger(__name__)


class Write:
    """One unconditional write, from its submission to its outcome."""

    __slots__ = (
        "began_s",
        "done",
        "event",
        "give_up_at",
        "lane",
        "maybe",
        "sent_at",
        "size",
        "subject",
        "token",
        "unclear",
    )

    def __init__(self, lane: "Lane", subject: str, event: NewEvent, done: Done, now: float) -> None:
        self.lane = lane
        self.subject = subject
        self.event = event
        self.done = done
        self.give_up_at = now + PUBLISH_DEADLINE_S
        self.began_s = monotonic()  # finer than the loop's clock, which stands still within a turn of it
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
            ack = acks.decode(payload)
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


class Lane:
    """First in, first out, for one partition of one process.

    *Open*, it sends at once and keeps up to ``IN_FLIGHT_MAX`` unanswered. With the first answer that is missing or
    says "not now" it is *mending*: what is new is held, what is in flight is awaited, then whatever is unresolved is
    sent again under the same ids, one after the other, in order; then it opens. A write that was refused for the
    moment while later ones of the same flight were taken comes after those: the server gives no way to hold them back.
    """

    def __init__(self, client: SyncClient, replies: Replies, tally: Tally) -> None:
        self.client = client
        self.tally = tally
        self.replies = replies
        self.flying: dict[int, Write] = {}  # by token, in the order of sending
        self.held: deque[Write] = deque()
        self.bytes = 0
        self.unclear = 0
        self.mending: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.repeated = 0

    def enter(self, write: Write) -> HublogError | None:
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

    def _launch(self, write: Write) -> HublogError | None:
        write.token = self.replies.expect(write)
        error = self._send(write)
        if error is not None:
            self.replies.forget(write.token)
            write.token = 0
            return error
        self.flying[write.token] = write
        return None

    def _send(self, write: Write) -> HublogError | None:
        event = write.event
        try:
            self.client.send(write.subject, self.replies.subject(write.token), event.payload, header_block(event))
        except HublogError as exc:
            return exc
        write.sent_at = asyncio.get_running_loop().time()
        return None

    def finish(self, write: Write, outcome: Stored | HublogError) -> None:
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

    def _end(self, write: Write, outcome: Stored | HublogError) -> None:
        """The one place where ``done`` is called for a write that was taken in."""
        self.bytes -= write.size
        ended = (DUPLICATE if outcome.duplicate else STORED) if isinstance(outcome, Stored) else outcome.code
        self.tally.ended("unconditional", ended, write.began_s, doubted=write.maybe)
        try:
            write.done(outcome)
        except Exception:
            # The caller's defect must not stop the lane of everybody.
            log.exception("log.done_failed")

    def doubt(self, write: Write) -> None:
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

    async def _repeat(self, write: Write) -> None:
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
