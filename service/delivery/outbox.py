"""The way out to one connection: bounded in bytes and in age, never waiting.

Frames are whole and ready to send; the transport is asyncio's. What is queued beyond the bound means that the
client does not read: the outbox says so once and takes nothing more, so that nobody else waits for it.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

RESET = struct.pack("ii", 1, 0)  # linger for no time


class Outbox:
    """Writes frames to a transport. Corked at first: frames wait until the handshake is answered."""

    __slots__ = ("_corked", "_mark_s", "_mark_written", "_on_slow", "_transport", "bytes_max", "open", "written")

    def __init__(self, transport: asyncio.WriteTransport, bytes_max: int, on_slow: Callable[[], None]) -> None:
        self._transport = transport
        self.bytes_max = bytes_max
        self._on_slow = on_slow
        self._corked: list[bytes] | None = []
        # Everything written up to `_mark_written` was handed over at `_mark_s`: how old the oldest waiting byte may be.
        self._mark_s = 0.0
        self._mark_written = 0
        self.open = True
        self.written = 0

    def write(self, frame: bytes) -> None:
        """Hot path: one call per delivery."""
        if self._corked is not None:
            self._cork(frame)
            return
        if self.open:
            transport = self._transport
            try:
                transport.write(frame)
            except RuntimeError:  # uvloop: the connection was lost, and its reader has yet to notice
                self.open = False
                return
            self.written += len(frame)
            if transport.get_write_buffer_size() > self.bytes_max:
                self._slow()

    def uncork(self, first: bytes) -> None:
        """Write ``first``, and behind it whatever waited for it."""
        waiting, self._corked = self._corked, None
        if waiting is None:
            self.write(first)
            return
        self.written = 0
        for frame in (first, *waiting):
            self.write(frame)

    def finish(self, last: bytes) -> None:
        """Write the last word. What waits for an answer to the handshake is dropped: there will be no session."""
        if self._corked is not None:
            self._corked, self.written = None, 0
        self.write(last)

    def check_age(self, now_s: float, age_max_s: float) -> None:
        """Notice a client that reads too slowly without ever filling the bound. Called about once a second."""
        if not self.open or self._corked is not None:
            return
        sent = self.written - self._transport.get_write_buffer_size()
        if sent >= self._mark_written:
            self._mark_s, self._mark_written = now_s, self.written
        elif now_s - self._mark_s > age_max_s:
            self._slow()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size()

    @property
    def half_full(self) -> bool:
        """Whoever writes much at once waits while this is so."""
        return self._transport.get_write_buffer_size() > self.bytes_max // 2

    def overflow(self) -> None:
        """More waits for this client elsewhere than may: it does not read."""
        if self.open:
            self._slow()

    def close(self) -> None:
        """Take nothing more; what was written still goes out."""
        self.open = False
        self._corked = None
        self._on_slow = _nobody  # no cycle with the connection: it is freed at once, not by the collector

    def abort(self) -> None:
        """Drop what is queued and the connection with it, at once.

        By a reset: a socket that is merely closed would keep what the kernel took of it, up to 4 MiB, for as long as
        its peer is there and does not read.
        """
        self.close()
        connected = self._transport.get_extra_info("socket")
        if connected is not None and connected.fileno() >= 0:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def _cork(self, frame: bytes) -> None:
        assert self._corked is not None
        self._corked.append(frame)
        self.written += len(frame)
        if self.written > self.bytes_max:
            self._slow()

    def _slow(self) -> None:
        self.open = False
        self._corked = None
        self._on_slow()


def _nobody() -> None:
    """Who is told of slowness once an outbox is closed."""
