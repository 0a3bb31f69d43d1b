"""One connection's side of the SignalR hub protocol, with no socket and no clock.

Owns the phases (handshake, opening, ready, done), the joining and splitting of records, their size limit and the three
timers. Bytes and monotonic seconds go in; messages, refusals and bytes come out. It refuses to know WebSocket, sessions
and methods. Modelled on the idea of websockets' ``protocol.py``: the shell reads, writes and waits, nothing more.

Sizes: 10,000 connections share one ``Limits``, and a buffer exists only while a record is incomplete.
"""

import enum

import msgspec

from events.errors import ClientTimeout, HandshakeTimeout, HublogError, MessageTooLarge
from service.gateway.signalr import json_format
from service.gateway.signalr.json_format import HANDSHAKE_OK, PING, RECORD_SEPARATOR, RefusedCall
from service.gateway.signalr.messages import (
    CloseReceived,
    HandshakeReceived,
    Incoming,
    InvocationReceived,
    PingDue,
    Refusal,
)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection; seconds are those of ASP.NET Core's defaults, which clients are tuned to."""

    record_bytes_max: int = 32_768
    """One message with its separator."""
    ping_s: float = 15.0
    """Send silence after which a Ping goes out."""
    silence_s: float = 30.0
    """Receive silence after which the client is taken for gone."""
    handshake_s: float = 15.0


DEFAULT_LIMITS = Limits()


class Phase(enum.IntEnum):
    HANDSHAKE = 0
    """Nothing but a handshake is read."""
    OPENING = 1
    """The handshake came; the shell is opening the session and has not answered. Messages are read already."""
    READY = 2
    DONE = 3
    """Either side has said its last word; whatever else arrives is not read."""


class HubMachine:
    """The protocol of one connection. Feed :meth:`receive` and :meth:`tick`; obey what they return, in order."""

    __slots__ = ("_limits", "_opened_s", "_partial", "last_received_s", "last_sent_s", "phase")

    def __init__(self, now_s: float, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._partial: bytearray | None = None
        self._opened_s = now_s
        self.last_received_s = now_s
        self.last_sent_s = now_s
        """Set by whoever writes to the transport: fan-out sets it directly, a method call per receiver would cost."""
        self.phase = Phase.HANDSHAKE

    def receive(self, data: bytes | str, now_s: float) -> list[Incoming]:
        """What the payload of one text frame says. A frame may hold several records, and a record several frames.

        Never raises on what the peer sent: what is wrong comes as a ``Refusal`` in its place in the order, and after
        a fatal one nothing more is read.
        """
        self.last_received_s = now_s
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogatepass")
        found: list[Incoming] = []
        start = 0
        while self.phase is not Phase.DONE:
            end = data.find(RECORD_SEPARATOR, start)
            if end < 0:
                if start < len(data):
                    self._keep(data[start:] if start else data, found)
                break
            record = data[start:end]
            start = end + 1
            if self._partial is not None:
                self._partial += record
                record, self._partial = bytes(self._partial), None
            if len(record) >= self._limits.record_bytes_max:
                found.append(self._fatal(self._too_large()))
            else:
                self._read(record, found)
        return found

    def lone_call(self, data: bytes, target: str, now_s: float) -> InvocationReceived | None:
        """What the payload says, if it is one whole call of ``target`` and nothing else, on an open session.

        None: nothing has happened, and :meth:`receive` is to read it. Hot path.
        """
        if (
            self.phase is not Phase.READY
            or self._partial is not None
            or len(data) > self._limits.record_bytes_max
            or data.find(RECORD_SEPARATOR) != len(data) - 1
        ):
            return None
        try:
            message = json_format.decode(data[:-1])
        except (RefusedCall, HublogError):
            return None
        if not isinstance(message, InvocationReceived) or message.target != target:
            return None
        self.last_received_s = now_s
        return message

    def accept(self, now_s: float) -> bytes:
        """The session is open: the answer to the handshake. Everything that is sent to the client comes after it.

        Empty if the connection ended meanwhile, or in the frame of the handshake itself. Raises: RuntimeError if there
        is no handshake to answer.
        """
        if self.phase is Phase.DONE:
            return b""
        if self.phase is not Phase.OPENING:
            raise RuntimeError(f"no handshake to accept in phase {self.phase.name}")
        self.phase = Phase.READY
        self.last_sent_s = now_s
        return HANDSHAKE_OK

    def end(self, error: HublogError | None, *, allow_reconnect: bool | None = None) -> bytes:
        """Our last word: a handshake error before the session is open, a Close after. Empty if it was said already.

        ``allow_reconnect`` defaults to whether the error is retryable. Before the session is open there are no words
        for an end without an error: close the socket.
        """
        phase, self.phase, self._partial = self.phase, Phase.DONE, None
        if phase is Phase.DONE:
            return b""
        if phase is not Phase.READY:
            return json_format.handshake_error(error.wire()) if error is not None else b""
        if allow_reconnect is None:
            allow_reconnect = error is not None and error.retryable
        return json_format.close(error.wire() if error is not None else None, allow_reconnect=allow_reconnect)

    def sent(self, now_s: float) -> None:
        """Something was written to the client."""
        self.last_sent_s = now_s

    def tick(self, now_s: float) -> PingDue | Refusal | None:
        """What is due at ``now_s``; ask about once a second. A Refusal given here is always fatal."""
        phase = self.phase
        if phase is Phase.DONE:
            return None
        if phase is Phase.HANDSHAKE:
            if now_s - self._opened_s >= self._limits.handshake_s:
                return self._fatal(HandshakeTimeout(f"no handshake came in {self._limits.handshake_s:g} s"))
            return None
        if now_s - self.last_received_s >= self._limits.silence_s:
            # Reconnectable: often it is the path that was silent, and a client that is gone does not read this.
            error = ClientTimeout(f"nothing was received for {self._limits.silence_s:g} s")
            return Refusal(error, self.end(error, allow_reconnect=True), fatal=True)
        if phase is Phase.READY and now_s - self.last_sent_s >= self._limits.ping_s:
            return PingDue(PING)
        return None

    def _read(self, record: bytes, found: list[Incoming]) -> None:
        try:
            if self.phase is Phase.HANDSHAKE:
                shake: HandshakeReceived = json_format.decode_handshake(record)
                self.phase = Phase.OPENING
                found.append(shake)
                return
            message = json_format.decode(record)
        except RefusedCall as refused:
            reply = json_format.completion_error(refused.invocation_id, refused.error.wire())
            found.append(Refusal(refused.error, reply, fatal=False))
            return
        except HublogError as error:
            found.append(self._fatal(error))
            return
        if message is None:
            return
        found.append(message)
        if isinstance(message, CloseReceived):
            self.phase = Phase.DONE

    def _keep(self, rest: bytes, found: list[Incoming]) -> None:
        """The start of a record whose end has not come; bounded, or a client could fill the memory."""
        if self._partial is None:
            self._partial = bytearray()
        if len(self._partial) + len(rest) >= self._limits.record_bytes_max:
            found.append(self._fatal(self._too_large()))
        else:
            self._partial += rest

    def _fatal(self, error: HublogError) -> Refusal:
        # Only its words are needed. What it was raised from holds frames, theirs hold the connection and this refusal.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return Refusal(error, self.end(error), fatal=True)

    def _too_large(self) -> HublogError:
        return MessageTooLarge(f"the message is larger than {self._limits.record_bytes_max} bytes")
