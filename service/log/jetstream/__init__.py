"""The event log on NATS JetStream: one connection, and everything that is said over it.

:func:`jetstream_log` is the way in for a process, :func:`log_as_it_is` for who only looks, and :func:`migrate_log` the
one for ``hublog migrate``.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from events.envelope import NewEvent, Recorded
from events.errors import LogUnavailable
from events.ids import Epoch
from service.log.jetstream import streams
from service.log.jetstream.append import Writer
from service.log.jetstream.client import Listening, SyncClient, connect
from service.log.jetstream.cursor import Cursor
from service.log.jetstream.feed import Feed
from service.log.jetstream.read import Reader, StreamSize
from service.log.jetstream.replies import Replies
from service.log.port import Done, OnDoubt, OnMessage, Stored
from service.log.tally import Tally
from service.telemetry.tracing import OFF, Tracing

__all__ = ["JetStreamLog", "StreamSize", "jetstream_log", "log_as_it_is", "migrate_log"]

CLOSE_DEADLINE_S = 5.0
PROBE_TIMEOUT_S = 1.0


class JetStreamLog:
    """``EventLog``, ``LiveFeed`` and the bucket of leases over one connection. Made by :func:`jetstream_log`."""

    def __init__(
        self, client: SyncClient, replies: Replies, epoch: Epoch, shape: streams.Shape, tracing: Tracing = OFF
    ) -> None:
        self._client = client
        self._replies = replies
        self._epoch = epoch
        self._shape = shape
        self._reader = Reader(client, replies, shape.replicas)
        self._writer = Writer(client, replies, self._reader, shape.partitions, tracing)
        self._feed = Feed(client)
        self._reader.on_leader = self._feed.led_by
        self._leases = streams.Leases(replies, self._reader)
        self._probed = 0

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def partitions(self) -> int:
        return self._shape.partitions

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def tally(self) -> Tally:
        """What became of the writes."""
        return self._writer.tally

    @property
    def disconnects(self) -> int:
        """How often the connection was lost."""
        return self._client.losses

    async def size(self, partition: int) -> StreamSize:
        """How much a partition holds, as the leader knows it. Raises: LogUnavailable."""
        info = await self._reader.info(partition)
        return StreamSize(info.state.bytes, info.state.messages, info.first, info.last, info.first_at_us)

    # -- EventLog

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        return await self._writer.append(subject, events, expected)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        self._writer.submit(subject, event, done)

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        return await self._writer.publish(subject, event)

    async def last(self, subject: str) -> Recorded | None:
        return await self._reader.last(subject)

    async def last_many(self, subjects: Iterable[str], up_to: int | None = None) -> dict[str, Recorded]:
        return await self._reader.last_many(subjects, up_to)

    async def last_sequence(self, partition: int) -> int:
        return (await self._reader.info(partition)).last

    async def first_sequence(self, partition: int) -> int:
        return (await self._reader.info(partition)).first

    def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        return self._reader.read(subject, first, last)

    def follow(self, partition: int, after: int, *, batch_max: int = 1_000) -> AsyncIterator[list[Recorded]]:
        return Cursor(self._client, self._replies, self._reader, partition, batch_max).follow(after)

    # -- LiveFeed

    def subscribe(self, subject: str, on_message: OnMessage) -> Listening:
        return self._feed.subscribe(subject, on_message)

    async def flush(self) -> None:
        await self._feed.flush()

    def observe(self, on_disconnected: Callable[[], None], on_connected: Callable[[], None]) -> None:
        self._feed.observe(on_disconnected, on_connected)

    def doubt(self, partition: int, on_doubt: OnDoubt) -> None:
        self._feed.doubt(partition, on_doubt)

    # -- leases

    async def lease_put(self, key: str, value: bytes) -> int:
        """Write a lease; returns its revision. Raises: LogUnavailable."""
        return await self._leases.put(key, value)

    async def lease_get(self, key: str) -> tuple[bytes, int] | None:
        """A lease and the broker's time of it (µs), as the leader knows it."""
        return await self._leases.get(key)

    async def lease_all(self) -> dict[str, tuple[bytes, int]]:
        """Every lease with the broker's time of it (µs)."""
        return await self._leases.all()

    # -- health

    async def probe(self) -> None:
        """Ask the leader of one partition after the other for a sign of life.

        Any answer that came meanwhile is one, whoever had asked: a server that is busy is not a server that is silent.

        Raises: LogUnavailable, LogMissing.
        """
        heard = self._replies.heard
        self._probed = (self._probed + 1) % self._shape.partitions
        try:
            await self._reader.info(self._probed, timeout_s=PROBE_TIMEOUT_S)
        except LogUnavailable as exc:
            if not isinstance(exc.__cause__, TimeoutError) or self._replies.heard == heard:
                raise

    def refuse_waiting(self) -> None:
        """Give up what waits behind others and was never sent."""
        self._writer.refuse_waiting(LogUnavailable("NATS does not answer; it was never sent"))

    async def go_elsewhere(self) -> None:
        """Give the server of this connection up for another one of its cluster, if there is one."""
        await self._client.go_elsewhere("it takes no lease")

    async def close(self) -> None:
        """Take nothing more, wait a moment for what is in flight, and go. Every ``done`` has been called afterwards."""
        await self._writer.close(CLOSE_DEADLINE_S)
        await self._client.close()


async def jetstream_log(
    url: str,
    *,
    name: str,
    partitions: int = 1,
    max_age_s: int = streams.MAX_AGE_S,
    duplicate_window_s: int = streams.DUPLICATE_WINDOW_S,
    replicas: int = 1,
    deadline_s: float = 10.0,
    tracing: Tracing = OFF,
) -> JetStreamLog:
    """Connect, and compare what is there with its definition.

    ``url``: one or several servers, comma-separated, credentials in it. ``name``: what the server calls this
    connection. ``tracing``: makes the spans of writes.

    Raises: LogUnavailable (no connection by the deadline), LogMissing, LogDrifted.
    """
    shape = streams.Shape(partitions, max_age_s, duplicate_window_s, replicas)
    return await _open(url, name, shape, deadline_s, tracing)


async def log_as_it_is(url: str, *, name: str, deadline_s: float = 10.0) -> JetStreamLog:
    """As :func:`jetstream_log`, whatever its operator has decided. Raises: the same."""
    return await _open(url, name, None, deadline_s, OFF)


async def _open(url: str, name: str, wanted: streams.Shape | None, deadline_s: float, tracing: Tracing) -> JetStreamLog:
    client = await connect(url, name=name, deadline_s=deadline_s)
    try:
        replies = Replies(client)
        shape = wanted or await streams.shape_of(replies)
        epoch = await streams.verify(
            replies,
            partitions=shape.partitions,
            max_age_s=shape.max_age_s,
            duplicate_window_s=shape.duplicate_window_s,
            replicas=shape.replicas,
        )
    except BaseException:
        await client.close()
        raise
    return JetStreamLog(client, replies, epoch, shape, tracing)


async def migrate_log(
    url: str,
    *,
    random: bytes,
    partitions: int = 1,
    max_age_s: int = streams.MAX_AGE_S,
    duplicate_window_s: int = streams.DUPLICATE_WINDOW_S,
    replicas: int = 1,
    deadline_s: float = 10.0,
) -> Epoch:
    """Make or mend the streams and the bucket of leases; see ``streams.migrate``."""
    client = await connect(url, name="hublog migrate", deadline_s=deadline_s)
    try:
        return await streams.migrate(
            Replies(client),
            partitions=partitions,
            max_age_s=max_age_s,
            duplicate_window_s=duplicate_window_s,
            replicas=replicas,
            random=random,
        )
    finally:
        await client.close()
