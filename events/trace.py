"""The trace context of an event (W3C Trace Context): one header beside the payload, ``traceparent``.

Owns its form, where it stands in the raw headers of a stored event, and how it stays with a payload that is delivered
live. Only what is sampled carries one. Knows no spans and nobody who collects them.
"""

import re
from typing import Self

_HEADER = b"\r\ntraceparent: "
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LENGTH = 55
SAMPLED = 1


class Traced(bytes):
    """A payload whose event is traced: bytes like any other, with the ``traceparent`` that came beside them."""

    traceparent: str

    def __new__(cls, payload: bytes, traceparent: str) -> Self:
        made = super().__new__(cls, payload)
        made.traceparent = traceparent
        return made


def valid(text: str) -> bool:
    """Whether it is a trace context; what is none is ignored, as the specification says."""
    return _FORM.fullmatch(text) is not None


def sampled(text: str) -> bool:
    """Whether who wrote a valid trace context keeps its trace."""
    return bool(int(text[53:55], 16) & SAMPLED)


def trace_id(text: str) -> str:
    """Of a valid trace context: the 32 hexadecimal digits that all of a trace share."""
    return text[3:35]


def header(traceparent: str) -> str:
    """The line of it in the headers of an event."""
    return f"traceparent: {traceparent}\r\n"


def of(headers: bytes, end: int | None = None) -> str | None:
    """The trace context in the raw headers of an event, looked for before ``end``. Hot path for what has none."""
    at = headers.find(_HEADER) if end is None else headers.find(_HEADER, 0, end)
    if at < 0:
        return None
    at += len(_HEADER)
    text = headers[at : at + _LENGTH].decode("ascii", "replace")
    return text if valid(text) else None
