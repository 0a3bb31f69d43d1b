"""The log of a hub as it was written, ascending by position; and of it the part that is one session's history."""

import base64
from datetime import datetime
from typing import Any, LiteralString

import msgspec

from events import codec
from events.envelope import Envelope
from events.errors import UnreadableEvent
from events.ids import EventId, HubName
from events.subjects import HubSubjects
from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Page
from projections.read.model import ReadModel

UNREADABLE = "unreadable"


class Event(msgspec.Struct, frozen=True, rename="camel"):
    """The envelope, and where it is. What does not decode has the type ``unreadable`` and its bytes as base64."""

    id: str
    type: str
    at: str
    actor: str
    correlation: str | None
    causation: str | None
    data: msgspec.Raw
    position: str
    subject: str


def _statement(inner: LiteralString) -> LiteralString:
    return (
        f"SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL ({inner}) p ON true"
        " WHERE c.partition = %(partition)s ORDER BY p.seq"
    )


_COLUMNS: LiteralString = "seq, subject, stored_at, payload"
_ALL = _statement(
    f"SELECT {_COLUMNS} FROM event_log WHERE hub = %(hub)s AND seq > %(after)s ORDER BY seq LIMIT %(take)s"
)
_OF_TYPES = _statement(
    f"""SELECT e.* FROM unnest(%(types)s::text[]) AS wanted(type) CROSS JOIN LATERAL (
        SELECT {_COLUMNS} FROM event_log WHERE hub = %(hub)s AND type = wanted.type AND seq > %(after)s
        ORDER BY seq LIMIT %(take)s
    ) e ORDER BY e.seq LIMIT %(take)s"""
)
_ON_SUBJECT: LiteralString = (
    f"SELECT {_COLUMNS} FROM event_log WHERE hashtextextended(subject, 0) = hashtextextended(%(subject)s, 0)"
    " AND subject = %(subject)s AND hub = %(hub)s AND seq > %(after)s {more} ORDER BY seq LIMIT %(take)s"
)
_SUBJECT = _statement(_ON_SUBJECT.format(more=""))
_SUBJECT_OF_TYPES = _statement(_ON_SUBJECT.format(more="AND type = ANY(%(types)s::text[])"))


async def page(
    model: ReadModel,
    hub: str,
    *,
    type: str | None = None,  # noqa: A002  the envelope's own word
    subject: str | None = None,
    limit: int = LIMIT_DEFAULT,
    after: str | None = None,
) -> Page[Event]:
    """``type`` is a tag (``session.opened.v1``), or without its version (``session.opened``) all versions of it."""
    partition = model.partition(hub)
    values: dict[str, object] = {
        "hub": hub,
        "after": 0 if after is None else answers.sequence_after(after, partition),
        "subject": subject,
        "types": [] if type is None else tags(type),
        "take": limit + 1,
    }
    if subject is not None:
        query = _SUBJECT if type is None else _SUBJECT_OF_TYPES
    else:
        query = _ALL if type is None else _OF_TYPES
    rows = await model.answer(query, partition, values)
    answers.same_epoch(after, rows)
    return answers.page(
        rows, partition, limit, lambda epoch, row: _event(epoch, partition, row), lambda one: one.position
    )


async def history(
    model: ReadModel, hub: str, session_id: str, *, limit: int = LIMIT_DEFAULT, after: str | None = None
) -> Page[Event]:
    """Everything that happened to a session itself: its life and its memberships."""
    subject = HubSubjects(HubName(hub), model.partitions).session(session_id)
    return await page(model, hub, subject=subject, limit=limit, after=after)


def tags(type: str) -> list[str]:  # noqa: A002
    """The tags that a client's ``type`` means."""
    return [tag for tag in codec.TAGS if tag.rpartition(".v")[0] == type] or [type]


def _event(epoch: str, partition: int, row: tuple[Any, ...]) -> Event:
    seq, subject, stored_at, payload = row
    written = _envelope(payload, stored_at)
    return Event(
        written.id,
        written.type,
        written.at,
        written.actor,
        written.correlation,
        written.causation,
        written.data,
        answers.position(epoch, partition, seq),
        subject,
    )


def _envelope(payload: bytes, stored_at: datetime) -> Envelope:
    try:
        payload.decode()  # a raw part may hold anything, and would break the JSON that it is put into
        return codec.envelope(payload)
    except (UnreadableEvent, UnicodeDecodeError):
        data = msgspec.json.encode({"payload": base64.b64encode(payload).decode()})
        return Envelope(EventId(""), UNREADABLE, stored_at.isoformat(), "", data=msgspec.Raw(data))
