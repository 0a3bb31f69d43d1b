"""Reading the streams: on the leader where it matters, by direct get where it is much.

Owns the two read interfaces of JetStream and what a replica that lags may do to an answer. Every message comes back as
it was stored, headers verbatim, whichever way it was read. Knows nothing of what is in them.
"""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial

import msgspec

from events.envelope import Recorded
from events.errors import Internal, LogMissing, LogUnavailable
from events.subjects import partition, stream
from service.log.jetstream.client import SyncClient
from service.log.jetstream.replies import REQUEST_TIMEOUT_S, ApiError, Replies

MULTI_LAST_MAX = 1_000  # subjects in one request; the server takes 1,024, and one is kept for the probe
MULTI_LAST_PARALLEL = 3
READ_BATCH_FIRST = 128  # what comes behind the range is read in vain, so begin small
READ_BATCH_MAX = 1_000  # direct get has no flow control: what one answer may hold is all there is
READ_BYTES_MAX = 4 * 1024 * 1024
READ_DEADLINE_S = 15.0  # without any progress
LAG_MAX_S = 5.0  # the same of a replica; then another server is asked
RETRY_S = 0.05
ASK_AGAIN_S = 1.0
FORMER_LEADER_S = 25.0  # so long, at most, a server that was cut off from the others may take itself for the leader

ENDS = {b"204", b"404"}  # the status behind a complete answer: end of batch, nothing found
NO_MESSAGE = 10037
STREAM_MISSING = 10059


class _Message(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


class _GetAnswer(msgspec.Struct, frozen=True):
    message: _Message | None = None
    error: ApiError | None = None


class _State(msgspec.Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    first_ts: str = ""
    last_seq: int = 0


class _Peer(msgspec.Struct, frozen=True):
    """Another server that keeps the stream."""


class _Cluster(msgspec.Struct, frozen=True):
    leader: str = ""
    replicas: list[_Peer] = []


class StreamSize(msgspec.Struct, frozen=True):
    """What a stream holds. ``first_at_us``: when its oldest event was stored; None where it is empty."""

    bytes: int
    messages: int
    first: int
    last: int
    first_at_us: int | None


class Info(msgspec.Struct, frozen=True):
    """What the leader says of a stream."""

    created: str = ""
    state: _State = _State()
    cluster: _Cluster = _Cluster()
    error: ApiError | None = None

    @property
    def last(self) -> int:
        return self.state.last_seq

    @property
    def first(self) -> int:
        return self.state.first_seq if self.state.messages else self.state.last_seq + 1

    @property
    def first_at_us(self) -> int | None:
        return micros(self.state.first_ts) if self.state.messages else None


_gets = msgspec.json.Decoder(_GetAnswer)
_infos = msgspec.json.Decoder(Info)


def micros(stamp: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time with any number of decimals, as JetStream writes it."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))


def direct_message(payload: bytes, headers: bytes) -> Recorded:
    """A message of direct get: its own headers, and behind them those that the server has added."""
    at = headers.rfind(b"\r\nNats-Stream: ")
    subject = _header(headers, b"Nats-Subject", at).decode()
    sequence = int(_header(headers, b"Nats-Sequence", at))
    stored_at_us = micros(_header(headers, b"Nats-Time-Stamp", at).decode())
    own = b"" if at == 8 else headers[:at] + b"\r\n\r\n"  # 8: right behind NATS/1.0
    return Recorded(subject, sequence, stored_at_us, payload, own)


def _header(block: bytes, name: bytes, start: int) -> bytes:
    at = block.find(b"\r\n" + name + b": ", start)
    if at < 0:
        raise Internal(f"an answer of JetStream has no {name.decode()}")
    at += len(name) + 4
    return block[at : block.find(b"\r\n", at)]


class _Batch:
    """Collects the messages of one direct get, up to the status that ends it."""

    __slots__ = ("future", "messages")

    def __init__(self, future: "asyncio.Future[bytes]") -> None:
        self.future = future
        self.messages: list[Recorded] = []

    def answered(self, payload: bytes, headers: bytes | None) -> None:
        if self.future.done():
            return
        if headers is None:
            self.future.set_exception(Internal("direct get answered without headers"))
        elif headers.startswith(b"NATS/1.0 "):
            self.future.set_result(headers)
        else:
            self.messages.append(direct_message(payload, headers))

    def lost(self) -> None:
        if not self.future.done():
            self.future.set_exception(LogUnavailable("the connection to NATS was lost"))


class Reader:
    """All reading of one connection. ``replicas`` is what the streams have: with one, no answer can be late."""

    def __init__(self, client: SyncClient, replies: Replies, replicas: int) -> None:
        self._client = client
        self._replies = replies
        self._replicas = replicas
        self.on_leader: Callable[[int, str], None] = lambda _number, _name: None

        self._reached: dict[int, int] = {}
        self._shorter_since: dict[int, float] = {}

    # -- on the leader

    def reached(self, number: int, sequence: int) -> None:
        """The stream is known to have got so far."""
        if sequence > self._reached.get(number, 0):
            self._reached[number] = sequence

    async def info(self, number: int, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Info:
        """What the leader says. Raises: LogMissing, LogUnavailable, for a while also where a stream is shorter than it
        was: then a server may have answered that leads no more.
        """
        subject = f"$JS.API.STREAM.INFO.{stream(number)}"
        raw = await self._replies.request(subject, b"", timeout_s=timeout_s, again_s=ASK_AGAIN_S)
        info = _infos.decode(raw)
        if info.error is not None:
            raise _refusal(info.error)
        if info.cluster.leader:
            self.on_leader(number, info.cluster.leader)
        if len(info.cluster.replicas) >= self._replicas:  # `hublog migrate` has moved the stream since we started
            self._replicas = len(info.cluster.replicas) + 1
        if self._replicas > 1:
            self._no_former_leader(number, info.last)
        return info

    def _no_former_leader(self, number: int, last: int) -> None:
        if last >= self._reached.get(number, 0):
            self._shorter_since.pop(number, None)
            self._reached[number] = last
            return
        now = asyncio.get_running_loop().time()
        if now - self._shorter_since.setdefault(number, now) < FORMER_LEADER_S:
            raise LogUnavailable(f"{stream(number)} ends at {last}, which it had passed: a former leader has answered")

    async def last(self, subject: str) -> Recorded | None:
        return await self.get(stream(partition(subject)), {"last_by_subj": subject})

    async def next_on(self, subject: str, sequence: int) -> Recorded | None:
        """The first message on a subject at or after a sequence."""
        return await self.get(stream(partition(subject)), {"seq": sequence, "next_by_subj": subject})

    async def at(self, number: int, sequence: int) -> Recorded | None:
        return await self.get(stream(number), {"seq": sequence})

    async def get(self, name: str, query: dict[str, object]) -> Recorded | None:
        """One message of a stream, as its leader answers."""
        asked = msgspec.json.encode(query)
        raw = await self._replies.request(f"$JS.API.STREAM.MSG.GET.{name}", asked, again_s=ASK_AGAIN_S)
        answer = _gets.decode(raw)
        if answer.message is not None:
            found = answer.message
            data, headers = base64.b64decode(found.data), base64.b64decode(found.hdrs)
            return Recorded(found.subject, found.seq, micros(found.time), data, headers)
        if answer.error is not None and answer.error.err_code != NO_MESSAGE:
            raise _refusal(answer.error)
        return None

    # -- by direct get

    async def last_many(self, subjects: Iterable[str], up_to: int | None) -> dict[str, Recorded]:
        wanted = list(dict.fromkeys(subjects))
        if not wanted or up_to == 0:
            return {}
        number = partition(wanted[0])
        probe: Recorded | None = None
        if up_to is not None and self._replicas > 1:
            probe = await self.at(number, up_to)
        gate = asyncio.Semaphore(MULTI_LAST_PARALLEL)

        async def some(chunk: list[str]) -> list[Recorded]:
            async with gate:
                return await self._last_chunk(number, chunk, up_to, probe)

        try:
            async with asyncio.TaskGroup() as group:
                chunks = [
                    group.create_task(some(wanted[at : at + MULTI_LAST_MAX]))
                    for at in range(0, len(wanted), MULTI_LAST_MAX)
                ]
        except ExceptionGroup as several:
            raise several.exceptions[0] from several  # callers wait for the log's own errors, not for a bundle of them
        asked = set(wanted)
        return {found.subject: found for task in chunks for found in task.result() if found.subject in asked}

    async def _last_chunk(
        self, number: int, chunk: list[str], up_to: int | None, probe: Recorded | None
    ) -> list[Recorded]:
        """``probe`` is the message at ``up_to``: a replica that does not know it has not got that far."""
        query: dict[str, object] = {"multi_last": chunk}
        if up_to is not None:
            query["up_to_seq"] = up_to
        if probe is not None and probe.subject not in chunk:
            query["multi_last"] = [*chunk, probe.subject]
        patience = self._patience()
        while True:
            status, messages = await self._direct(stream(number), query)
            if status[9:12] in ENDS and (probe is None or any(found.sequence == probe.sequence for found in messages)):
                return messages
            await patience.pause(stream(number))

    async def last_matching(self, name: str, pattern: str) -> list[Recorded]:
        """The last message of every subject (at most 1,024) of a stream that a pattern matches."""
        patience = self._patience()
        while True:
            status, messages = await self._direct(name, {"multi_last": [pattern]})
            if status[9:12] in ENDS:
                return messages
            await patience.pause(name)

    async def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        number = partition(subject)
        wanted, size = max(first, 1), READ_BATCH_FIRST
        patience = self._patience()
        while wanted <= last:
            batch = min(size, last - wanted + 1)
            query = {"next_by_subj": subject, "seq": wanted, "batch": batch, "max_bytes": READ_BYTES_MAX}
            status, messages = await self._direct(stream(number), query)
            for found in messages:
                if found.sequence > last:
                    return
                wanted = found.sequence + 1
                yield found
            if messages:
                patience.renew()
                size = READ_BATCH_MAX
            if status[9:12] in ENDS:
                if messages and int(_header(status, b"Nats-Num-Pending", 0)):
                    continue
                if await self._nothing_more(subject, wanted, last):
                    return
            await patience.pause(stream(number))

    def _patience(self) -> "_Patience":
        """A server asks its own replica first, and one can lag for ever: then another server has a better one."""
        if self._replicas == 1:
            return _Patience(READ_DEADLINE_S, _stay)
        return _Patience(LAG_MAX_S, partial(self._client.go_elsewhere, "its replica lags"))

    async def _nothing_more(self, subject: str, wanted: int, last: int) -> bool:
        """Whether the end that a replica reported is the end: the leader knows."""
        if self._replicas == 1 or wanted > last:
            return True
        found = await self.next_on(subject, wanted)
        if found is not None:
            return found.sequence > last
        # Cut off from the others, a server takes itself for the leader some seconds longer: this shows one that does.
        await self.info(partition(subject))
        return True

    async def _direct(self, name: str, query: dict[str, object]) -> tuple[bytes, list[Recorded]]:
        """One direct get: the status block that ended it, and what came before."""
        batch = _Batch(asyncio.get_running_loop().create_future())
        token = self._replies.expect(batch)
        try:
            subject = f"$JS.API.DIRECT.GET.{name}"
            self._client.send(subject, self._replies.subject(token), msgspec.json.encode(query))
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await batch.future, batch.messages
        except TimeoutError as exc:
            raise LogUnavailable(f"direct get of {name} was not answered") from exc
        finally:
            self._replies.forget(token)


async def _stay() -> None:
    """There is one replica."""


class _Patience:
    """How long to ask again without progress."""

    def __init__(self, seconds: float, on_enough: Callable[[], Awaitable[None]]) -> None:
        self._clock = asyncio.get_running_loop().time
        self._seconds, self._on_enough = seconds, on_enough
        self.renew()

    def renew(self) -> None:
        self._until = self._clock() + self._seconds

    async def pause(self, what: str) -> None:
        """Raises: LogUnavailable when it is enough."""
        if self._clock() > self._until:
            await self._on_enough()
            raise LogUnavailable(f"direct get does not answer for {what}")
        await asyncio.sleep(RETRY_S * (0.5 + random.random()))  # noqa: S311 — jitter


def _refusal(error: ApiError) -> LogMissing | LogUnavailable:
    if error.err_code == STREAM_MISSING:
        return LogMissing(f"a stream of the log is missing: {error.description}")
    return LogUnavailable(f"JetStream does not answer: {error.err_code} {error.description}", err_code=error.err_code)
