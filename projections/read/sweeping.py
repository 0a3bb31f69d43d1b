"""What the sweeper asks: which lives of nodes are over, and which sessions are owed an event.

Sessions come page by page, ascending by hub and id. What is here may be late; the log decides what becomes of it.
"""

from typing import Any, LiteralString

import msgspec

from events import codec, node
from events.errors import HublogError
from projections.read.model import ReadModel

PAGE = 1_000

_US: LiteralString = "(extract(epoch FROM {}) * 1000000)::bigint"


class Life(msgspec.Struct, frozen=True):
    """One incarnation of a node, as the log tells it. ``changed_at_us``: when it last did."""

    node: str
    incarnation: str
    lost: bool
    changed_at_us: int


class LostLife(msgspec.Struct, frozen=True):
    """An incarnation that the log calls lost. ``seq`` is that of the event in partition 0."""

    incarnation: str
    seq: int
    last_renewal_us: int


class Owed(msgspec.Struct, frozen=True):
    """A session, with the connection that holds it, or held it last, and the sequence of its last event."""

    hub: str
    session_id: str
    seq: int
    connection: str
    resumable: bool
    incarnation: str
    opened_at_us: int | None


_LIVES: LiteralString = f"""
SELECT node, incarnation, state = 'lost', {_US.format("changed_at")} FROM nodes
WHERE state <> 'lost' OR incarnation = ANY(%(leased)s::text[])"""
_LOST: LiteralString = f"""
SELECT n.incarnation, n.seq, {_US.format("n.changed_at")}, e.payload
FROM nodes n LEFT JOIN event_log e ON e.partition = 0 AND e.seq = n.seq
WHERE n.state = 'lost' AND n.seq > %(after)s ORDER BY n.seq"""
# Materialized, or the planner may walk all sessions there ever were by their key, looking for the first few.
_OWED: LiteralString = f"""
WITH owed AS MATERIALIZED (
    SELECT hub, session_id, seq, connection, resumable, incarnation, {_US.format("opened_at")} FROM sessions
    WHERE partition = %(partition)s AND {{which}}
)
SELECT * FROM owed WHERE (hub, session_id) > (%(hub)s, %(session)s) ORDER BY hub, session_id LIMIT %(take)s"""
_ATTACHED = _OWED.format(which="state = 'active' AND incarnation = ANY(%(incarnations)s::text[])")
_OVERDUE = _OWED.format(
    which="state = 'detached' AND detached_at < timestamptz 'epoch' + %(before)s * interval '1 microsecond'"
)
_AGEING = _OWED.format(which="state <> 'closed' AND seq <= %(up_to)s")
_ENDS: LiteralString = "SELECT min(seq), max(seq) FROM event_log WHERE partition = %(partition)s"
_STORED: LiteralString = f"""
SELECT seq, {_US.format("stored_at")} FROM event_log
WHERE partition = %(partition)s AND seq >= %(seq)s ORDER BY seq LIMIT 1"""


async def lives(model: ReadModel, leased: list[str]) -> list[Life]:
    """Every incarnation that is not lost, and those of ``leased`` that are known, lost or not."""
    return [Life(*row) for row in await model.rows(_LIVES, {"leased": leased})]


async def lost(model: ReadModel, after: int) -> list[LostLife]:
    """Those that were lost by an event after a sequence, in order."""
    rows = await model.rows(_LOST, {"after": after})
    return [LostLife(incarnation, seq, _last_renewal(payload, changed)) for incarnation, seq, changed, payload in rows]


async def attached(model: ReadModel, partition: int, incarnations: list[str], after: Owed | None) -> list[Owed]:
    return await _page(model, _ATTACHED, partition, after, incarnations=incarnations)


async def overdue(model: ReadModel, partition: int, before_us: int, after: Owed | None) -> list[Owed]:
    """Detached before a time of the broker's."""
    return await _page(model, _OVERDUE, partition, after, before=before_us)


async def ageing(model: ReadModel, partition: int, up_to: int, after: Owed | None) -> list[Owed]:
    """Attached or detached, with a last event at or before a sequence."""
    return await _page(model, _AGEING, partition, after, up_to=up_to)


async def sequence_before(model: ReadModel, partition: int, before_us: int) -> int:
    """The last sequence stored before a time; 0 if none is known. Times only grow with sequences, so it is halved."""
    ((first, last),) = await model.rows(_ENDS, {"partition": partition})
    if first is None:
        return 0
    found, end = first - 1, last + 1  # stored before; stored later, or beyond
    while end - found > 1:
        middle = (found + end) // 2
        rows = await model.rows(_STORED, {"partition": partition, "seq": middle})
        seq, stored_at_us = rows[0] if rows else (end, before_us)
        if stored_at_us < before_us:
            found = seq
        else:
            end = middle
    return found if found >= first else 0


async def _page(
    model: ReadModel, query: LiteralString, partition: int, after: Owed | None, **values: object
) -> list[Owed]:
    hub, session = (after.hub, after.session_id) if after is not None else ("", "")
    common = {"partition": partition, "hub": hub, "session": session, "take": PAGE}
    rows: list[tuple[Any, ...]] = await model.rows(query, {**common, **values})
    return [Owed(*row) for row in rows]


def _last_renewal(payload: bytes | None, otherwise_us: int) -> int:
    """As the event says; when the incarnation was lost, if its event cannot be had."""
    if payload is not None:
        try:
            said = codec.decode(payload)[1]
        except HublogError:
            return otherwise_us
        if isinstance(said, node.Lost):
            return said.last_renewal_us
    return otherwise_us
