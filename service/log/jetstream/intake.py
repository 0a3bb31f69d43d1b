"""Messages from NATS, handed to their callbacks where they arrive: inside the socket's own callback.

Owns the way of whole messages of our own subscriptions past asyncio's StreamReader, which would keep them for nats-py's
reading task, a turn of the loop later. Everything else goes that way as before (a piece of a message, PING, INFO, an
error, nats-py's own subscriptions), and with it all that follows, until nats-py has nothing left and waits: what is
handed over is in the order of the wire. It refuses to know what the messages mean, and what is no message.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

LINE_BYTES_MAX = 4096  # of the line before a payload, as nats-server bounds it

# subject, reply (empty if none), payload, raw header block (None if none)
OnRaw = Callable[[bytes, bytes, bytes, bytes | None], None]

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """A subscription whose messages may be handed over at once."""

    callback: OnRaw


def hand_over(listener: Listener, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
    """What one callback fails at is its own: those behind it hear theirs."""
    try:
        listener.callback(subject, reply, payload, headers)
    except Exception:
        log.exception("nats.callback_failed", subject=subject.decode(errors="replace"))


class Intake:
    """Stands in front of one connection's StreamReader, from :meth:`begin` until the connection is over."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        parser: Parser,
        subscriptions: Mapping[int, Any],
        listener: type[Listener],
        still_connected: Callable[[], bool],
    ) -> None:
        """``subscriptions`` by their id, of which those of exactly the class ``listener`` are ours."""
        self._reader: Any = reader  # Any: whether it waits, and for how much, is not for others to see
        self._parser = parser
        self._subscriptions = subscriptions
        self._listener = listener
        self._still_connected = still_connected
        self._pass_on = reader.feed_data

    def begin(self) -> None:
        self._reader.feed_data = self.take

    def take(self, data: bytes) -> None:
        """What the socket had. Hot path: called once for each read."""
        reader = self._reader
        idle = reader._waiter is not None and not reader._buffer  # noqa: SLF001
        parser = self._parser
        if not idle or parser.buf or parser.state != AWAITING_CONTROL_LINE or not self._still_connected():
            self._pass_on(data)
            return
        taken = self._take_whole(data)
        if taken < len(data):
            self._pass_on(data[taken:] if taken else data)

    def _take_whole(self, data: bytes) -> int:
        """Hand over the messages that ``data`` begins with; gives where the first thing begins that is not for us."""
        at, size = 0, len(data)
        while at < size:
            with_headers = data.startswith(b"HMSG ", at)
            if not with_headers and not data.startswith(b"MSG ", at):
                break
            line_end = data.find(b"\r\n", at, at + LINE_BYTES_MAX)
            if line_end < 0:
                break
            words = data[at:line_end].split(b" ")
            # MSG subject sid [reply] bytes, HMSG subject sid [reply] bytes-of-headers bytes
            replied = len(words) - 4 - with_headers
            if replied not in {0, 1}:
                break
            try:
                listener = self._subscriptions.get(int(words[2]))
                body_at = line_end + 2 + (int(words[-2]) if with_headers else 0)
                end = line_end + 2 + int(words[-1])
            except ValueError:
                break
            if end + 2 > size or listener is None or type(listener) is not self._listener:
                break
            at = end + 2
            headers = data[line_end + 2 : body_at] if with_headers else None
            hand_over(listener, words[1], words[3] if replied else b"", data[body_at:end], headers)
        return at
