"""SignalR's JSON format, the client's side: records to structs, calls to bytes. No sockets, no time.

Owns the framing by 0x1E and the taking apart of arguments. Arguments stay raw until their handler is called: what one
sender wrote cannot break the connection of those who receive it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

SEPARATOR = b"\x1e"
HANDSHAKE = b'{"protocol":"json","version":1}\x1e'
PING = b'{"type":6}\x1e'
CLOSE = b'{"type":7}\x1e'

INVOCATION, COMPLETION, PING_TYPE, CLOSE_TYPE = 1, 3, 6, 7


class Unreadable(Exception):
    """What came is no message of the protocol."""


class Message(msgspec.Struct):
    """Every field of the messages that a client is sent; empty ``Raw`` is "absent"."""

    type: int
    target: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"[]")
    invocationId: str | None = None  # noqa: N815  the wire's spelling
    result: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None
    allowReconnect: bool = False  # noqa: N815


class _Handshake(msgspec.Struct):
    error: str | None = None
    type: int | None = None  # only messages have one


_decode = msgspec.json.Decoder(Message).decode
_decode_handshake = msgspec.json.Decoder(_Handshake).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class Records:
    """Splits what comes into records; one may span frames, a frame may hold several."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(SEPARATOR)
        return [record for record in whole if record]


def message(record: bytes) -> Message:
    """Raises: Unreadable."""
    try:
        return _decode(record)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Unreadable(f"a message cannot be read: {exc}") from exc


def handshake_error(record: bytes) -> str | None:
    """Why the service refuses, or None if it accepts. Raises: Unreadable."""
    try:
        answer = _decode_handshake(record)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise Unreadable(f"the answer to the handshake cannot be read: {exc}") from exc
    if answer.type is not None:
        raise Unreadable("a message came before the answer to the handshake")
    return answer.error


def arguments(raw: bytes | msgspec.Raw, *, positioned: bool) -> tuple[list[msgspec.Raw], str | None]:
    """The arguments one by one and, where asked for when connecting, the position behind them. Raises: Unreadable."""
    try:
        parts = _decode_parts(raw)
        return (parts[:-1], _decode_text(parts[-1])) if positioned else (parts, None)
    except (msgspec.DecodeError, UnicodeError, RecursionError, IndexError) as exc:
        raise Unreadable(f"the arguments of an invocation cannot be read: {exc}") from exc


def call(number: str, target: str, parameters: Sequence[Any]) -> bytes:
    """A call that wants an answer. Raises: TypeError for what JSON cannot say."""
    return (
        _encode({"type": INVOCATION, "invocationId": number, "target": target, "arguments": list(parameters)})
        + SEPARATOR
    )
