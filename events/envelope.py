"""What every event carries, and what the log adds when it stores one.

``Envelope`` is the payload. ``Recorded`` is a stored message: bytes verbatim, with what the broker says of them.
"""

import msgspec

from events.ids import EventId


class Envelope(msgspec.Struct, frozen=True):
    """One event as it is written: msgspec JSON in this order of fields.

    ``at`` is UTC with microseconds (``2026-11-21T10:00:00.000000Z``), ``actor`` one of ``session:<id>``, ``user:<id>``,
    ``worker:<name>``, ``system:<role>``. ``data`` stays raw: its shape is named by ``type``.
    """

    id: EventId
    type: str
    at: str
    actor: str
    correlation: str | None = None
    causation: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"{}")


class NewEvent(msgspec.Struct, frozen=True):
    """An event on its way to the log: its id, the encoded envelope, and where it is traced what it belongs to."""

    id: EventId
    payload: bytes
    traceparent: str | None = None


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """A stored event. ``stored_at_us``: the broker's clock, microseconds since 1970; headers: the raw NATS block."""

    subject: str
    sequence: int
    stored_at_us: int
    payload: bytes
    headers: bytes = b""
