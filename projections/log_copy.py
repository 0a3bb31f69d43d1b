"""The log's copy in Postgres, verbatim: ``event_log``, written once per event by binary COPY."""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct as Layout

from projections import statements
from projections.checkpoint import Connection
from projections.columns import Column, bigints, byteas, texts
from projections.fold import LogRow

# The binary format of COPY: every field behind its length, -1 for null; times in microseconds since 2000.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_FIRST_FIELDS = Layout("!hihiq").pack  # field count, partition, sequence
_LENGTH = Layout("!i").pack
_MOMENT_AND_LENGTH = Layout("!iqi").pack
_NULL = _LENGTH(-1)
_2000_US = 946_684_800_000_000


async def append(connection: Connection, partition: int, log: Sequence[LogRow], known: int) -> None:
    """Inside a transaction. Events beyond ``known`` by COPY; what may be there already, in a replay, by an insert that
    skips it.
    """
    again = [row for row in log if row.event.sequence <= known]
    if again:
        await connection.execute(statements.REPEAT_LOG, {"partition": partition, **_repeated(again)})
    fresh = log[len(again) :]
    if fresh:
        async with connection.cursor() as cursor, cursor.copy(statements.COPY_LOG) as copy:
            await copy.write(_binary(partition, fresh))


def _binary(partition: int, log: Sequence[LogRow]) -> bytes:
    """Hot path."""
    parts = [_HEADER]
    for row in log:
        event = row.event
        subject, headers, payload = text(event.subject).encode(), event.headers, event.payload
        parts += (
            _FIRST_FIELDS(8, 2, partition, 8, event.sequence),
            _name(row.hub),
            _name(row.type),
            _LENGTH(len(subject)),
            subject,
            _MOMENT_AND_LENGTH(8, event.stored_at_us - _2000_US, len(headers)),
            headers,
            _LENGTH(len(payload)),
            payload,
        )
    parts.append(_TRAILER)
    return b"".join(parts)


@lru_cache(maxsize=1_024)
def _name(name: str | None) -> bytes:
    """The field of a hub or a type: of few and short ones."""
    if name is None:
        return _NULL
    field = name.encode()
    return _LENGTH(len(field)) + field


def text(subject: str) -> str:
    """Text in Postgres holds no NUL; a subject with one is parked, and must not take its batch with it."""
    return subject.replace("\0", "\\0") if "\0" in subject else subject


def _repeated(log: Sequence[LogRow]) -> dict[str, Column]:
    events = [row.event for row in log]
    return {
        "hub": texts([row.hub for row in log]),
        "type": texts([row.type for row in log]),
        "seq": bigints([event.sequence for event in events]),
        "subject": texts([text(event.subject) for event in events]),
        "stored_at": bigints([event.stored_at_us for event in events]),
        "headers": byteas([event.headers for event in events]),
        "payload": byteas([event.payload for event in events]),
    }
