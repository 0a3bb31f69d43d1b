"""What a client can say, and what the machine asks of its shell, as structs.

Owns the vocabulary between :mod:`service.gateway.signalr.machine` and the connection that drives it. It knows no
encoding: ``arguments`` and ``result`` are raw JSON bytes, as they came.
"""

import msgspec

from events.errors import HublogError


class HandshakeReceived(msgspec.Struct, frozen=True, gc=False):
    """The first record: a protocol that is spoken here. Answer it with ``machine.accept`` or ``machine.end``."""

    protocol: str
    version: int


class InvocationReceived(msgspec.Struct, frozen=True, gc=False):
    """A call. Without ``invocation_id`` no answer is wanted. ``arguments`` is one JSON array in valid UTF-8.

    ``traceparent``: what its headers say, unchecked.
    """

    invocation_id: str | None
    target: str
    arguments: bytes
    traceparent: str | None = None


class CompletionReceived(msgspec.Struct, frozen=True, gc=False):
    """The client's answer to a call of ours: ``result`` (raw JSON), ``error``, or neither for a void one."""

    invocation_id: str
    result: bytes | None
    error: str | None


class CancelReceived(msgspec.Struct, frozen=True, gc=False):
    """The client no longer wants the answer of that call."""

    invocation_id: str


class PingReceived(msgspec.Struct, frozen=True, gc=False):
    """The client lives; already noted by the machine."""


class CloseReceived(msgspec.Struct, frozen=True, gc=False):
    """The client leaves on purpose. Nothing that it sends afterwards is read."""

    error: str | None


class Refusal(msgspec.Struct, frozen=True):
    """What the peer did wrong, and the bytes that tell it: write ``reply``; if ``fatal``, close the socket after it.

    ``reply`` is a handshake error, a Close, or (never fatal) a Completion with the error of that one call.
    """

    error: HublogError
    reply: bytes
    fatal: bool


class PingDue(msgspec.Struct, frozen=True, gc=False):
    """Nothing was sent for a while: write ``reply``, then note it with ``machine.sent``."""

    reply: bytes


Incoming = (
    HandshakeReceived
    | InvocationReceived
    | CompletionReceived
    | CancelReceived
    | PingReceived
    | CloseReceived
    | Refusal
)
