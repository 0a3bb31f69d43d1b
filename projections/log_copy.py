"""The log's copy in Postgres, verbatim: ``event_log``, written once per event by binary COPY."""

from collections.abc import Sequence
from struct import Struct as Layout
from typing import Any, LiteralString

from projections import statements
from projections.checkpoint import Connection
from projections.fold import LogRow

_KNOWN: LiteralString = "SELECT coalesce(max(seq), 0) FROM event_log WHERE partition = %s"

# The binary format of COPY: every field behind its length, -1 for null; times in microseconds since 2000.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_FIRST_FIELDS = Layout("!hihiq").pack  # field count, partition, sequence
_LENGTH = Layout("!i").pack
_MOMENT = Layout("!iq").pack
_NULL = _LENGTH(-1)
_2000_US = 946_684_800_000_000


async def append(connection: Connection, partition: int, log: Sequence[LogRow]) -> None:
    """Inside a transaction. New events by COPY; what may be there already, in a replay, by an insert that skips it."""
    answer = await (await connection.execute(_KNOWN, (partition,))).fetchone()
    known = answer[0] if answer else 0
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
    add = parts.append
    for row in log:
        event = row.event
        add(_FIRST_FIELDS(8, 2, partition, 8, event.sequence))
        for name in (row.hub, row.type):
            if name is None:
                add(_NULL)
            else:
                field = name.encode()
                add(_LENGTH(len(field)))
                add(field)
        field = text(event.subject).encode()
        add(_LENGTH(len(field)))
        add(field)
        add(_MOMENT(8, event.stored_at_us - _2000_US))
        add(_LENGTH(len(event.headers)))
        add(event.headers)
        add(_LENGTH(len(event.payload)))
        add(event.payload)
    add(_TRAILER)
    return b"".join(parts)


def text(subject: str) -> str:
    """Text in Postgres holds no NUL; a subject with one is parked, and must not take its batch with it."""
    return subject.replace("\0", "\\0") if "\0" in subject else subject


def _repeated(log: Sequence[LogRow]) -> dict[str, list[Any]]:
    events = [row.event for row in log]
    return {
        "hub": [row.hub for row in log],
        "type": [row.type for row in log],
        "seq": [event.sequence for event in events],
        "subject": [text(event.subject) for event in events],
        "stored_at": [event.stored_at_us for event in events],
        "headers": [event.headers for event in events],
        "payload": [event.payload for event in events],
    }
