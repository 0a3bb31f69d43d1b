"""SignalR's JSON format: one record, ended by 0x1E, to and from structs.

Owns the spelling of every message (aspnetcore, ``src/SignalR/docs/specs/HubProtocol.md``, "JSON Encoding") and the
check that raw arguments are a JSON array in UTF-8. It refuses to know order, phases, time and frames: the machine does.

Hot path: arguments and results are never decoded, only checked, and are copied from the frame that they came in.
"""

import msgspec

from events.errors import BadHandshake, BadMessage, HublogError, InvalidArguments, NotAvailable, UnsupportedProtocol
from events.surrogates import LONE_SURROGATE, read_leniently
from service.gateway.signalr.messages import (
    CancelReceived,
    CloseReceived,
    CompletionReceived,
    HandshakeReceived,
    Incoming,
    InvocationReceived,
    PingReceived,
)

RECORD_SEPARATOR = 0x1E
VERSIONS = (1, 2)
"""2 is what clients send once stateful reconnect is negotiated (WIRE: the same messages, plus Ack and Sequence)."""

PING = b'{"type":6}\x1e'
HANDSHAKE_OK = b"{}\x1e"

_json = msgspec.json.Encoder().encode


class _Wire(msgspec.Struct, gc=False):
    """Every field of every message. ``Raw(b"")`` is "absent": msgspec has no ``Raw | None``."""

    type: int
    invocationId: str | None = None  # noqa: N815
    target: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"")
    streamIds: list[str] | None = None  # noqa: N815
    result: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None
    headers: msgspec.Raw = msgspec.Raw(b"")


class _Headers(msgspec.Struct, gc=False):
    """Of all that a call's headers may say, what is listened to."""

    traceparent: str | None = None


class _Peek(msgspec.Struct, gc=False):
    """Just enough to answer a call whose rest cannot be read."""

    type: int
    invocationId: str  # noqa: N815


class _Handshake(msgspec.Struct, gc=False):
    protocol: str
    version: int


_decode = msgspec.json.Decoder(_Wire).decode
_peek = msgspec.json.Decoder(_Peek).decode
_decode_headers = msgspec.json.Decoder(_Headers).decode
_decode_handshake = msgspec.json.Decoder(_Handshake).decode

# RecursionError: msgspec's own answer to arrays nested hundreds deep.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RefusedCall(Exception):
    """Only this one call is refused; the connection goes on. ``error`` is the leaf of the tree that says why."""

    def __init__(self, invocation_id: str, error: HublogError) -> None:
        super().__init__(error.message)
        self.invocation_id = invocation_id
        self.error = error


# ---------------------------------------------------------------------------------------------- encoding


def invocation(target: str, arguments: bytes) -> bytes:
    """A call on the client without an answer; ``arguments`` is a raw JSON array."""
    return b'{"type":1,"target":' + _json(target) + b',"arguments":' + arguments + b"}\x1e"


def completion_result(invocation_id: str, result: bytes) -> bytes:
    """The answer to a client's call; ``result`` is one raw JSON value."""
    return b'{"type":3,"invocationId":' + _json(invocation_id) + b',"result":' + result + b"}\x1e"


def completion_error(invocation_id: str, error: str) -> bytes:
    return b'{"type":3,"invocationId":' + _json(invocation_id) + b',"error":' + _json(error) + b"}\x1e"


def completion_void(invocation_id: str) -> bytes:
    return b'{"type":3,"invocationId":' + _json(invocation_id) + b"}\x1e"


def ping() -> bytes:
    return PING


def close(error: str | None, *, allow_reconnect: bool) -> bytes:
    said = b"" if error is None else b',"error":' + _json(error)
    return b'{"type":7' + said + (b',"allowReconnect":true' if allow_reconnect else b"") + b"}\x1e"


def handshake_ok() -> bytes:
    return HANDSHAKE_OK


def handshake_error(error: str) -> bytes:
    return b'{"error":' + _json(error) + b"}\x1e"


# ---------------------------------------------------------------------------------------------- decoding


def decode_handshake(record: bytes) -> HandshakeReceived:
    """The first record, without its separator. Raises: BadHandshake, UnsupportedProtocol."""
    try:
        record.decode()  # msgspec does not look into fields that it skips
        shake = _decode_handshake(record)
    except _UNREADABLE as exc:
        raise BadHandshake("the first message is not a handshake") from exc
    if shake.protocol != "json":
        known = shake.protocol if shake.protocol == "messagepack" else "what was asked for"
        raise UnsupportedProtocol(f"{known} is not spoken here")
    if shake.version not in VERSIONS:
        raise UnsupportedProtocol(f"version {shake.version} of the json protocol is not spoken here")
    return HandshakeReceived(shake.protocol, shake.version)


def decode(record: bytes) -> Incoming | None:
    """One record, without its separator. None: read and of no consequence.

    Raises: RefusedCall where only one call is wrong and can be answered; BadMessage where the connection must end.
    """
    try:
        record.decode()  # Raw and skipped fields are not checked by msgspec; one bad byte would close a receiver (1007)
        wire = _decode(record)
    except _UNREADABLE as exc:
        raise _unreadable(record, exc) from exc
    kind = wire.type
    if kind == 1:
        return _invocation(wire)
    if kind == 6:
        return PingReceived()
    if kind == 7:
        return CloseReceived(wire.error)
    if kind == 3:
        return _completion(wire)
    if kind == 5:
        return CancelReceived(_required_id(wire, "a CancelInvocation"))
    if kind == 4:
        raise RefusedCall(_required_id(wire, "a StreamInvocation"), NotAvailable("streams are not available"))
    if kind == 2:
        # An upload: the call that announced it was refused, its items may be under way. ASP.NET drops them likewise.
        _required_id(wire, "a StreamItem")
        return None
    if kind in {8, 9}:
        raise BadMessage("Ack and Sequence belong to stateful reconnect, which was not negotiated")
    raise BadMessage(f"{kind if 0 <= kind < 1000 else 'that'} is not a type of message")


def _invocation(wire: _Wire) -> InvocationReceived:
    if wire.target is None:
        raise _refused(wire, BadMessage("the Invocation has no target"))
    arguments = bytes(wire.arguments)  # a copy: Raw would keep the whole frame alive
    if not arguments.startswith(b"["):
        raise _refused(wire, InvalidArguments("the arguments are not an array"))
    if wire.streamIds:
        raise _refused(wire, NotAvailable("uploads by stream are not available"))
    traceparent = _traceparent(wire.headers) if len(wire.headers) else None
    return InvocationReceived(wire.invocationId, wire.target, arguments, traceparent)


def _traceparent(headers: msgspec.Raw) -> str | None:
    """What headers say beside it, or where they are none, was never looked at; it does not begin to matter here."""
    try:
        return _decode_headers(headers).traceparent
    except _UNREADABLE:
        return None


def _completion(wire: _Wire) -> CompletionReceived:
    invocation_id = _required_id(wire, "a Completion")
    result = bytes(wire.result) or None
    if result is not None and wire.error is not None:
        raise BadMessage("a Completion has either a result or an error")
    return CompletionReceived(invocation_id, result, wire.error)


def _required_id(wire: _Wire, what: str) -> str:
    if wire.invocationId is None:
        raise BadMessage(f"{what} needs an invocationId")
    return wire.invocationId


def _refused(wire: _Wire, error: HublogError) -> Exception:
    """A call that wants no answer cannot be told on its own: then the error itself ends the connection."""
    return error if wire.invocationId is None else RefusedCall(wire.invocationId, error)


def _unreadable(record: bytes, cause: Exception) -> Exception:
    """The most local refusal that an unreadable record leaves possible."""
    error: HublogError
    if isinstance(cause, UnicodeDecodeError):
        error = BadMessage("the message is not valid UTF-8")
    elif isinstance(cause, RecursionError):
        error = BadMessage("the message is nested too deeply")
    elif isinstance(cause, msgspec.ValidationError):
        error = BadMessage(f"the message does not fit: {cause}")
    else:
        return _cut_short(record)
    try:
        call = _peek(record)
    except _UNREADABLE:
        return error
    return RefusedCall(call.invocationId, error) if call.type in {1, 4} else error


def _cut_short(record: bytes) -> Exception:
    """No JSON to msgspec. A text that was cut inside a character, as clients do to long ones, costs only its call."""
    try:
        read = read_leniently(record)
    except (ValueError, RecursionError):
        return BadMessage("the message is not JSON")
    error = BadMessage(LONE_SURROGATE)
    try:
        call = msgspec.convert(read, _Peek)
        call.invocationId.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        return error
    return RefusedCall(call.invocationId, error) if call.type in {1, 4} else error
