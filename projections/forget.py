"""Sessions that the log has forgotten, closed in the rows alone: there is nothing left to append to.

Owns that one exception to "rows come from events". It keeps the counts of groups and hubs right, and holds the
projector of the partition off meanwhile, as another projector would.
"""

from collections.abc import Sequence
from typing import LiteralString

import psycopg

from projections import statements
from projections.read.sweeping import Owed

REASON = "expired"

# Whoever writes rows of the partition moves its checkpoint first, and so waits here.
_HOLD: LiteralString = "SELECT sequence FROM checkpoints WHERE partition = %s FOR UPDATE"
_CLOSE: LiteralString = f"""
WITH old AS MATERIALIZED (
    SELECT s.hub, s.session_id, s.state, s.groups
    FROM unnest(%(hub)s::text[], %(session_id)s::text[], %(seq)s::bigint[]) AS t (hub, session_id, seq)
    JOIN sessions s USING (hub, session_id) WHERE s.seq = t.seq AND s.state <> 'closed'
), closed AS (
    UPDATE sessions s SET state = 'closed', reason = '{REASON}', groups = '{{}}', detached_at = NULL, closed_at = now()
    FROM old WHERE s.hub = old.hub AND s.session_id = old.session_id
), stays AS (
    UPDATE memberships m SET left_seq = %(left_seq)s, left_at = now()
    FROM old WHERE m.hub = old.hub AND m.session_id = old.session_id AND m.left_seq IS NULL
), counted AS (
    UPDATE groups g SET size = g.size - left_by.size, attached = g.attached - left_by.attached
    FROM (
        SELECT hub, group_name, count(*) AS size, count(*) FILTER (WHERE state = 'active') AS attached
        FROM old CROSS JOIN LATERAL unnest(old.groups) AS of_session (group_name) GROUP BY hub, group_name
    ) AS left_by
    WHERE g.hub = left_by.hub AND g.group_name = left_by.group_name
    RETURNING g.hub, g.group_name, g.size
), hubs_counted AS (
    UPDATE hubs h SET active = h.active - by_state.active, detached = h.detached - by_state.detached,
        closed = h.closed + by_state.active + by_state.detached
    FROM (
        SELECT hub, count(*) FILTER (WHERE state = 'active') AS active,
               count(*) FILTER (WHERE state = 'detached') AS detached
        FROM old GROUP BY hub
    ) AS by_state WHERE h.hub = by_state.hub
)
SELECT hub, NULL FROM old UNION ALL SELECT hub, group_name FROM counted WHERE size = 0"""


async def close_forgotten(dsn: str, partition: int, sessions: Sequence[Owed]) -> int:
    """Close those that are still as they were found; how many that were. Raises: psycopg.Error."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection, connection.transaction():
        held = await (await connection.execute(_HOLD, (partition,))).fetchone()
        values = {
            "hub": [one.hub for one in sessions],
            "session_id": [one.session_id for one in sessions],
            "seq": [one.seq for one in sessions],
            "left_seq": held[0] if held is not None else 0,
        }
        rows = await (await connection.execute(_CLOSE, values)).fetchall()
        empty = [(hub, group) for hub, group in rows if group is not None]
        if empty:
            names = {"hub": [hub for hub, _ in empty], "group_name": [group for _, group in empty]}
            await connection.execute(statements.FORGET_GROUPS, names)
        return len(rows) - len(empty)
