"""The live feed: what the server republishes as it stores it, straight from the parser to whoever listens.

Owns the two sequence numbers in the headers and the mapping of subjects. A hot path: per message it makes one string
and two integers. Does not notice holes; the previous sequence that it hands on is what delivery notices them by.

Only the leader of a stream republishes, at most once, behind the storing: what one stored last and did not live to
republish, no other repeats. So every sign of another leader is handed on as a doubt: the server's advisory, another
name in what the leader says of the stream, and routes between servers that went or came.
"""

from collections.abc import Callable

from nats import errors as nats_errors

from events import trace
from events.errors import LogUnavailable
from events.subjects import live, stream
from service.log.jetstream.client import Listening, SyncClient
from service.log.port import OnDoubt, OnMessage

LEADER_ELECTED = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED."

# The server appends these, in this order, behind whatever the publisher wrote.
_ADDED = b"\r\nNats-Stream: "
_SEQUENCE = b"\r\nNats-Sequence: "
_PREVIOUS = b"\r\nNats-Last-Sequence: "


class Feed:
    """``LiveFeed`` over one connection."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self._doubters: dict[int, list[OnDoubt]] = {}
        self._leaders: dict[int, str] = {}
        client.on_cluster_changed = self._cluster_changed

    @property
    def connected(self) -> bool:
        return self._client.connected

    def subscribe(self, subject: str, on_message: OnMessage) -> Listening:
        literal = "*" not in subject and ">" not in subject

        def heard(live_subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
            if headers is None:
                return  # not republished by the server: nobody else may write here, and nothing is known of it
            added = headers.rfind(_ADDED)
            at = headers.find(_SEQUENCE, added) + 17
            sequence = int(headers[at : headers.find(b"\r\n", at)])
            at = headers.find(_PREVIOUS, at) + 22
            previous = int(headers[at : headers.find(b"\r\n", at)])
            traceparent = trace.of(headers, added)
            if traceparent is not None:
                payload = trace.Traced(payload, traceparent)
            on_message(subject if literal else "ev" + live_subject[2:].decode(), sequence, previous, payload)

        return self._client.listen(live(subject), heard)

    async def flush(self) -> None:
        try:
            await self._client.flush()
        except nats_errors.Error as exc:
            raise LogUnavailable("NATS does not answer") from exc

    def observe(self, on_disconnected: Callable[[], None], on_connected: Callable[[], None]) -> None:
        self._client.observe(_Observer(on_disconnected, on_connected))

    def doubt(self, partition: int, on_doubt: OnDoubt) -> None:
        known = self._doubters.setdefault(partition, [])
        known.append(on_doubt)
        if len(known) > 1:
            return

        def elected(_subject: bytes, _reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
            self._leaders.pop(partition, None)
            self._tell(partition, "leader changed")

        self._client.listen(LEADER_ELECTED + stream(partition), elected)

    def led_by(self, partition: int, leader: str) -> None:
        """Somebody has asked who leads: an advisory may be lost, or not permitted."""
        before = self._leaders.get(partition)
        self._leaders[partition] = leader
        if before is not None and before != leader:
            self._tell(partition, "leader changed")

    def _cluster_changed(self) -> None:
        for partition in self._doubters:
            self._tell(partition, "servers changed")

    def _tell(self, partition: int, reason: str) -> None:
        for on_doubt in self._doubters.get(partition, ()):
            on_doubt(reason)


class _Observer:
    __slots__ = ("lost", "regained")

    def __init__(self, lost: Callable[[], None], regained: Callable[[], None]) -> None:
        self.lost = lost
        self.regained = regained
