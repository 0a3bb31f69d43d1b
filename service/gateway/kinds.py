"""How a call is written for each kind of wire: plain, with its position as a last argument, or with a notice behind it.

Two of them tell clients positions: typed clients cannot take another argument, so they are sent ``hub.cursor`` in the
same write, behind the message that it covers.
"""

from service.gateway.signalr import json_format
from service.gateway.signalr.framing import text_frame

PLAIN, WITH_POSITION, WITH_NOTICE = range(3)


def encode(kind: int, target: str, arguments: bytes, position: str) -> bytes:
    """One call as one frame, the same bytes for every connection of a kind."""
    if kind == PLAIN:
        return text_frame(json_format.invocation(target, arguments))
    quoted = b'"' + position.encode() + b'"'
    if kind == WITH_POSITION:
        inside = arguments[1:-1]
        return text_frame(
            json_format.invocation(target, b"[" + inside + (b"," if inside.strip() else b"") + quoted + b"]")
        )
    notice = json_format.invocation("hub.cursor", b"[" + quoted + b"]")
    return text_frame(json_format.invocation(target, arguments) + notice)
