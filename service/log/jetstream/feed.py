"""The live feed: what the server republishes as it stores it, straight from the parser to whoever listens.

Owns the two sequence numbers in the headers and the mapping of subjects. A hot path: per message it makes one string
and two integers. Does not notice holes; the previous sequence that it hands on is what delivery notices them by.
"""

from collections.abc import Callable

from nats import errors as nats_errors

from events import trace
from events.errors import LogUnavailable
from events.subjects import live
from service.log.jetstream.client import Listening, SyncClient
from service.log.port import OnMessage

# The server appends these, in this order, behind whatever the publisher wrote.
_ADDED = b"\r\nNats-Stream: "
_SEQUENCE = b"\r\nNats-Sequence: "
_PREVIOUS = b"\r\nNats-Last-Sequence: "


class Feed:
    """``LiveFeed`` over one connection."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

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


class _Observer:
    __slots__ = ("lost", "regained")

    def __init__(self, lost: Callable[[], None], regained: Callable[[], None]) -> None:
        self.lost = lost
        self.regained = regained
