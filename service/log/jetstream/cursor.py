"""Following a partition, for projections: an own pull cursor without acknowledgements.

Behind, it keeps two batches asked for. Caught up, it asks now and then for what has gathered, and only when that is
nothing for the next single event: to be woken for each of a thousand events a second costs more than the events do.

Owns the ephemeral consumer and its loss. The caller's checkpoint is the only truth about how far it got, so the
consumer is thrown away and made anew, from the first sequence not yet handed on, whenever anything about it is in
doubt. Knows nothing of what is in the messages.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator

import msgspec
import structlog

from events.envelope import Recorded
from events.errors import LogRegressed, LogUnavailable
from events.subjects import stream
from service.log.jetstream.client import SyncClient
from service.log.jetstream.read import Reader
from service.log.jetstream.replies import ApiError, Replies

IDLE_S = 1.0  # an empty batch is yielded after this
# How long a follower that has caught up lets events gather. Shorter: a transaction each costs it, and the machine, more
# than the events do. Longer: it keeps a core busy for so long at a time that those who share it wait (p99).
GATHER_S = 0.03
GATHERED_EXPIRES_S = 0.001  # a pull for what is there already
BEHIND = 500  # events that wait in the stream, from which on it is read in full batches
PULL_EXPIRES_S = 30.0
HEARTBEAT_S = 2.0
SILENCE_MAX_S = 5.0  # no message and no heartbeat for this long: the consumer is gone
INACTIVE_S = 30  # the server removes a consumer that nobody pulls from
PULL_BYTES_MAX = 8 * 1024 * 1024
CHECK_EVERY_S = 60.0  # whether the stream is still the one it was
RETRY_S = 0.25
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


class _Created(msgspec.Struct, frozen=True):
    num_pending: int = 0
    error: ApiError | None = None


class _Pull:
    """One life of a consumer: what it has sent, and how much more it may."""

    def __init__(self, client: SyncClient, number: int, batch_max: int) -> None:
        self.client = client
        self.name = f"hublog-{secrets.token_hex(8)}"
        self.stream = stream(number)
        self.batch_max = batch_max
        self.inbox = f"_INBOX.{secrets.token_hex(11)}"
        self.ready: deque[Recorded] = deque()
        self.asked = 0  # messages that open pulls may still bring
        self.gathering = False  # the open pull is for what is there already, and over in a moment
        self.pending = 0  # events that wait in the stream, as last heard
        self.broken: str | None = None
        self.heard_at = 0.0
        self.wake = asyncio.Event()
        self.clock = asyncio.get_running_loop().time
        self.listening = client.listen(self.inbox, self._on_message)

    @property
    def behind(self) -> bool:
        return self.pending >= BEHIND

    def pull(self) -> None:
        """Behind, keep up to two batches asked for or waiting here; else wait for the next event."""
        if self.broken is not None:
            return
        if self.behind:
            room = 2 * self.batch_max - self.asked - len(self.ready)
            # No more than there is: the rest of a pull would bring what is new one by one.
            there = min(self.batch_max, self.pending - self.asked)
            if there > 0 and room >= self.batch_max:
                self._ask(there, PULL_EXPIRES_S)
        elif not self.behind and self.asked == 0:
            self._ask(1, PULL_EXPIRES_S)

    def pull_gathered(self) -> None:
        """Ask for what is there by now, if for nothing else."""
        if self.broken is None and self.asked == 0:
            self._ask(self.batch_max, GATHERED_EXPIRES_S)
            self.gathering = True

    def _ask(self, batch: int, expires_s: float) -> None:
        request: dict[str, int] = {"batch": batch, "expires": int(expires_s * _NS), "max_bytes": PULL_BYTES_MAX}
        if expires_s > 2 * HEARTBEAT_S:
            request["idle_heartbeat"] = int(HEARTBEAT_S * _NS)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.name}"
        self.client.send(subject, self.inbox, msgspec.json.encode(request))
        self.asked += batch
        self.gathering = False
        self.heard_at = self.clock()

    def _on_message(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        self.heard_at = self.clock()
        if not reply:
            self._status(headers or b"")
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<n>.<ns>.<pending>, or with domain and account after ACK.
        parts = reply.split(b".")
        at = 5 if len(parts) == 9 else 7
        self.asked -= 1
        self.pending = int(parts[at + 3])
        self.ready.append(
            Recorded(subject.decode(), int(parts[at]), int(parts[at + 2]) // 1_000, payload, headers or b"")
        )
        if not self.gathering or self.asked == 0:  # what has gathered is handed on in one piece
            self.wake.set()

    def _status(self, headers: bytes) -> None:
        status = headers[9:12]
        if status == b"100":
            return
        at = headers.find(b"Nats-Pending-Messages: ")
        if at >= 0 and status in {b"408", b"409"}:
            # A pull has ended, by time or by bytes, with this much of it unused.
            self.asked -= int(headers[at + 23 : headers.find(b"\r\n", at)])
        else:
            self.broken = headers[9 : headers.find(b"\r\n")].decode(errors="replace")
        self.wake.set()

    def close(self) -> None:
        self.listening.unsubscribe()
        if self.client.connected:
            self.client.send(f"$JS.API.CONSUMER.DELETE.{self.stream}.{self.name}", "", b"")


class Cursor:
    """One follower of one partition."""

    def __init__(self, client: SyncClient, replies: Replies, reader: Reader, number: int, batch_max: int) -> None:
        self._client = client
        self._replies = replies
        self._identity = _Identity(reader, number)
        self._number = number
        self._batch_max = batch_max

    async def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        """See ``EventLog.follow``."""
        clock = asyncio.get_running_loop().time
        yielded_at = checked_at = clock()
        pull: _Pull | None = None
        due = 0
        try:
            while True:
                if pull is None:
                    checked_at = clock()
                    pull = await self._open(after)
                if pull is not None and not pull.ready:
                    await _wait(pull, yielded_at + IDLE_S - clock())
                batch = await self._take(pull, after) if pull is not None else []
                if batch or clock() - yielded_at >= IDLE_S:
                    after += len(batch)
                    yield batch
                    if pull is not None:
                        due = 0 if batch else await self._missed(pull, after, due)
                    yielded_at = clock()
                if pull is None:
                    continue
                doubt = _doubt(pull)
                if doubt is not None:
                    log.warning("log.cursor_restarted", partition=self._number, after=after, why=doubt)
                    pull.close()
                    pull = None
                elif clock() - checked_at > CHECK_EVERY_S:
                    checked_at = clock()
                    with contextlib.suppress(LogUnavailable):  # then the connection is in doubt soon enough
                        await self._identity.check(after)
                elif self._client.connected:
                    if batch and not pull.behind and pull.asked == 0:
                        await asyncio.sleep(GATHER_S)
                        pull.pull_gathered()
                    else:
                        pull.pull()
        finally:
            if pull is not None:
                pull.close()

    async def _missed(self, pull: _Pull, after: int, due: int) -> int:
        """Nothing came for a second: what the leader has by now, to be compared with what has come in the next.

        A consumer gives what its own server's replica has, and one that lags for ever sends heartbeats all the same.
        """
        if after < due and pull.broken is None and not pull.ready:
            pull.broken = f"nothing comes, and the log goes on to {due}"
        with contextlib.suppress(LogUnavailable):
            return await self._identity.last()
        return 0

    async def _take(self, pull: _Pull, after: int) -> list[Recorded]:
        """What has come and directly follows ``after``."""
        batch = [pull.ready.popleft() for _ in range(min(self._batch_max, len(pull.ready)))]
        for place, found in enumerate(batch):
            if found.sequence != after + 1 + place:
                pull.ready.clear()
                pull.broken = f"sequence {found.sequence} came instead of {after + 1 + place}"
                with contextlib.suppress(LogUnavailable):  # then the next consumer meets the same gap
                    await self._identity.confirm(after + 1 + place)
                return batch[:place]
        return batch

    async def _open(self, after: int) -> _Pull | None:
        """A fresh consumer behind ``after``, with its first pull out; None, after a pause, while that cannot be had."""
        pull = _Pull(self._client, self._number, self._batch_max)
        config = {
            "name": pull.name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": INACTIVE_S * _NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        subject = f"$JS.API.CONSUMER.CREATE.{pull.stream}.{pull.name}"
        try:
            await self._identity.check(after)
            raw = await self._replies.request(
                subject, msgspec.json.encode({"stream_name": pull.stream, "config": config})
            )
            answer = msgspec.json.decode(raw, type=_Created)
            if answer.error is None:
                pull.heard_at = pull.clock()
                pull.pending = answer.num_pending
                pull.pull()
                return pull
            log.warning("log.cursor_refused", partition=self._number, problem=answer.error.description)
        except LogUnavailable as exc:
            log.debug("log.cursor_waits", partition=self._number, why=exc.message)
        except BaseException:
            pull.close()
            raise
        pull.close()
        await asyncio.sleep(RETRY_S)
        return None


async def _wait(pull: _Pull, timeout_s: float) -> None:
    pull.wake.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await pull.wake.wait()


def _doubt(pull: _Pull) -> str | None:
    """Why this consumer must not be trusted to say more, if so. What it has said already is handed on first."""
    if pull.broken is not None:
        return pull.broken
    if pull.ready:
        return None
    if not pull.client.connected:
        return "disconnected"
    if pull.asked > 0 and pull.clock() - pull.heard_at > SILENCE_MAX_S:
        return "silence"
    return None


class _Identity:
    """Whether the stream is still the one that was followed, and as long as it must be."""

    def __init__(self, reader: Reader, number: int) -> None:
        self._reader = reader
        self._number = number
        self._created: str | None = None

    async def last(self) -> int:
        """Raises: LogMissing, LogUnavailable."""
        return (await self._reader.info(self._number, timeout_s=IDLE_S)).last

    async def check(self, after: int) -> None:
        """Raises: LogRegressed, LogMissing, LogUnavailable."""
        self._reader.reached(self._number, after)
        info = await self._reader.info(self._number)
        name = stream(self._number)
        if self._created is not None and info.created != self._created:
            raise LogRegressed(f"{name} was made anew at {info.created}, it was of {self._created}")
        self._created = info.created
        if info.last < after:
            raise LogRegressed(f"{name} ends at {info.last}, it was read up to {after}", last=info.last, after=after)
        if info.first > after + 1:
            raise LogRegressed(f"{name} begins at {info.first}, wanted is {after + 1}", first=info.first, after=after)

    async def confirm(self, sequence: int) -> None:
        """A sequence did not come: was it lost on the way, or is it gone? Raises: LogRegressed if it is gone."""
        self._reader.reached(self._number, sequence)
        await self._reader.info(self._number)
        if await self._reader.at(self._number, sequence) is None:
            raise LogRegressed(f"{stream(self._number)} has no sequence {sequence}", sequence=sequence)
