"""Bytes to events and back: tags, versions, upcasters.

A tag (``session.opened.v1``) never changes its meaning. A new shape gets a new tag, and an upcaster lifts the old one
to it, one version at a time. ``tests/golden`` keeps the bytes of every tag ever written.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from events import invocation, node, session
from events.envelope import Envelope, NewEvent, Recorded
from events.errors import UnreadableEvent, UpgradeRequired
from events.ids import EventId

Event: TypeAlias = session.Event | invocation.Event | node.Event

TAGS: dict[str, type[Event]] = {
    "session.opened.v1": session.Opened,
    "session.attached.v1": session.Attached,
    "session.detached.v1": session.Detached,
    "session.joined.v1": session.Joined,
    "session.left.v1": session.Left,
    "session.carried.v1": session.Carried,
    "session.closed.v1": session.Closed,
    "invocation.requested.v1": invocation.Requested,
    "invocation.answered.v1": invocation.Answered,
    "invocation.cancelled.v1": invocation.Cancelled,
    "invocation.expired.v1": invocation.Expired,
    "node.started.v1": node.Started,
    "node.draining.v1": node.Draining,
    "node.lost.v1": node.Lost,
    "node.delivered.v1": node.Delivered,
    "node.canary.v1": node.Canary,
}
TAG_OF: dict[type[Event], str] = {shape: tag for tag, shape in TAGS.items()}

# Old tag -> (its successor, the raw data in the successor's shape).
Upcaster: TypeAlias = Callable[[msgspec.Raw], tuple[str, msgspec.Raw]]
UPCASTERS: dict[str, Upcaster] = {}

_encoder = msgspec.json.Encoder()
_envelope: msgspec.json.Decoder[Envelope] = msgspec.json.Decoder(Envelope)
_data: dict[str, msgspec.json.Decoder[Event]] = {tag: msgspec.json.Decoder(shape) for tag, shape in TAGS.items()}


def encode(
    event: Event,
    *,
    id: EventId,  # noqa: A002  the envelope's own word
    at: str,
    actor: str,
    correlation: str | None = None,
    causation: str | None = None,
    traceparent: str | None = None,
) -> NewEvent:
    """An event, ready for the log. ``at``: UTC with microseconds and ``Z``."""
    data = msgspec.Raw(_encoder.encode(event))
    envelope = Envelope(id, TAG_OF[type(event)], at, actor, correlation, causation, data)
    return NewEvent(id, _encoder.encode(envelope), traceparent)


def envelope(payload: bytes) -> Envelope:
    """Raises: UnreadableEvent."""
    try:
        return _envelope.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise UnreadableEvent(f"an envelope does not decode: {exc}") from exc


def event_of(written: Envelope) -> Event:
    """The event inside an envelope, lifted to the newest shape.

    Raises: UpgradeRequired (a tag of a newer release), UnreadableEvent.
    """
    tag, data = written.type, written.data
    while tag in UPCASTERS:
        tag, data = UPCASTERS[tag](data)
    decoder = _data.get(tag)
    if decoder is None:
        raise UpgradeRequired(f"event type {tag[:64]!r} is not known to this release")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise UnreadableEvent(f"an event of type {tag} does not decode: {exc}") from exc


def decode(payload: bytes) -> tuple[Envelope, Event]:
    """Raises: UpgradeRequired, UnreadableEvent."""
    written = envelope(payload)
    return written, event_of(written)


def session_state(recorded: Recorded | None) -> session.State:
    """The state of a session from the last event of its subject. Raises: UpgradeRequired, UnreadableEvent."""
    if recorded is None:
        return session.INITIAL
    event = event_of(envelope(recorded.payload))
    if not isinstance(event, session.Event):
        raise UnreadableEvent(f"{recorded.subject} holds {TAG_OF[type(event)]}, which is no event of a session")
    return session.settle(event, recorded.sequence, recorded.stored_at_us)
