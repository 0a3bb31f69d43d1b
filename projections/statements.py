"""The statements of ``write``: static SQL, set-based, every one of them harmless when it is run again.

Each takes the columns of its rows as arrays, and times as microseconds since 1970.
"""

from typing import LiteralString

# Exact: the interval is counted in integers of microseconds.
TIME: LiteralString = "timestamptz 'epoch' + {} * interval '1 microsecond'"

COPY_LOG: LiteralString = (
    "COPY event_log (partition, seq, hub, type, subject, stored_at, headers, payload) FROM STDIN (FORMAT binary)"
)
REPEAT_LOG: LiteralString = f"""
INSERT INTO event_log (partition, seq, hub, type, subject, stored_at, headers, payload)
SELECT %(partition)b, seq, hub, type, subject, {TIME.format("stored_at")}, headers, payload
FROM unnest(%(seq)b::bigint[], %(hub)b::text[], %(type)b::text[], %(subject)b::text[], %(stored_at)b::bigint[],
            %(headers)b::bytea[], %(payload)b::bytea[]) AS t (seq, hub, type, subject, stored_at, headers, payload)
ON CONFLICT (partition, seq) DO NOTHING"""

# Sessions, and with them what depends on what they were before: all CTEs see the rows as before this statement. Answers
# per hub how its sessions by state changed, and which groups (second column) have become empty.
SESSIONS: LiteralString = f"""
WITH new AS MATERIALIZED (
    SELECT hub, session_id, seq, state, reason, resumable, user_id, node, incarnation, connection, generation,
           groups::text[] AS groups, metadata, opened_seq,
           {TIME.format("opened_at")} AS opened_at, {TIME.format("detached_at")} AS detached_at,
           {TIME.format("closed_at")} AS closed_at, {TIME.format("last_seen_at")} AS last_seen_at, seen
    FROM unnest(%(hub)b::text[], %(session_id)b::text[], %(seq)b::bigint[], %(state)b::text[], %(reason)b::text[],
                %(resumable)b::boolean[], %(user_id)b::text[], %(node)b::text[], %(incarnation)b::text[],
                %(connection)b::text[], %(generation)b::bigint[], %(groups)b::text[], %(metadata)b::bytea[],
                %(opened_seq)b::bigint[], %(opened_at)b::bigint[], %(detached_at)b::bigint[],
                %(closed_at)b::bigint[], %(last_seen_at)b::bigint[], %(seen)b::boolean[])
         AS t (hub, session_id, seq, state, reason, resumable, user_id, node, incarnation, connection, generation,
               groups, metadata, opened_seq, opened_at, detached_at, closed_at, last_seen_at, seen)
), old AS MATERIALIZED (
    SELECT s.hub, s.session_id, s.state, s.groups, s.last_seen_at FROM new JOIN sessions s USING (hub, session_id)
), moved AS (
    INSERT INTO sessions (partition, hub, session_id, seq, state, reason, resumable, user_id, node, incarnation,
        connection, generation, groups, metadata, opened_seq, opened_at, detached_at, closed_at, last_seen_at)
    SELECT %(partition)b, hub, session_id, seq, new.state, reason, resumable, user_id, node, incarnation, connection,
           generation, new.groups, metadata, opened_seq, opened_at, detached_at, closed_at,
           CASE WHEN seen THEN new.last_seen_at ELSE old.last_seen_at END
    FROM new LEFT JOIN old USING (hub, session_id)
    ON CONFLICT (hub, session_id) DO UPDATE SET
        seq = excluded.seq, state = excluded.state, reason = excluded.reason, resumable = excluded.resumable,
        user_id = excluded.user_id, node = excluded.node, incarnation = excluded.incarnation,
        connection = excluded.connection, generation = excluded.generation, groups = excluded.groups,
        metadata = excluded.metadata, opened_seq = excluded.opened_seq,
        opened_at = coalesce(excluded.opened_at, sessions.opened_at), detached_at = excluded.detached_at,
        closed_at = coalesce(excluded.closed_at, sessions.closed_at), last_seen_at = excluded.last_seen_at
    WHERE sessions.seq < excluded.seq
    RETURNING hub, session_id
), change AS (
    SELECT hub, state, groups, 1 AS sign FROM moved JOIN new USING (hub, session_id)
    UNION ALL
    SELECT hub, state, groups, -1 FROM moved JOIN old USING (hub, session_id)
), counted AS (
    INSERT INTO groups AS g (hub, group_name, size, attached)
    SELECT hub, group_name, sum(sign), coalesce(sum(sign) FILTER (WHERE state = 'active'), 0)
    FROM change CROSS JOIN LATERAL unnest(groups) AS of_session (group_name)
    GROUP BY hub, group_name
    HAVING sum(sign) <> 0 OR sum(sign) FILTER (WHERE state = 'active') <> 0
    ORDER BY hub, group_name
    ON CONFLICT (hub, group_name) DO UPDATE SET size = g.size + excluded.size, attached = g.attached + excluded.attached
    RETURNING hub, group_name, size
)
SELECT hub, group_name, 0, 0, 0 FROM counted WHERE size = 0
UNION ALL
SELECT hub, NULL, coalesce(sum(sign) FILTER (WHERE state = 'active'), 0)::bigint,
       coalesce(sum(sign) FILTER (WHERE state = 'detached'), 0)::bigint,
       coalesce(sum(sign) FILTER (WHERE state = 'closed'), 0)::bigint
FROM change GROUP BY hub"""

FORGET_GROUPS: LiteralString = """
DELETE FROM groups g USING unnest(%(hub)b::text[], %(group_name)b::text[]) AS t (hub, group_name)
WHERE g.hub = t.hub AND g.group_name = t.group_name AND g.size = 0"""

STAYS: LiteralString = f"""
INSERT INTO memberships AS m (hub, session_id, group_name, joined_seq, joined_at, left_seq, left_at)
SELECT hub, session_id, group_name, joined_seq, {TIME.format("joined_at")}, left_seq, {TIME.format("left_at")}
FROM unnest(%(hub)b::text[], %(session_id)b::text[], %(group_name)b::text[], %(joined_seq)b::bigint[],
            %(joined_at)b::bigint[], %(left_seq)b::bigint[], %(left_at)b::bigint[])
     AS t (hub, session_id, group_name, joined_seq, joined_at, left_seq, left_at)
ON CONFLICT (hub, session_id, group_name, joined_seq) DO UPDATE
SET left_seq = excluded.left_seq, left_at = excluded.left_at
WHERE m.left_seq IS NULL AND excluded.left_seq IS NOT NULL"""

_INVOCATIONS: LiteralString = f"""
INSERT INTO invocations (partition, hub, invocation_id, seq, target, arguments, selector, caller, ttl_ms, requested_at,
    status, status_seq)
SELECT %(partition)b, hub, invocation_id, seq, target, arguments, selector, caller, ttl_ms,
       {TIME.format("requested_at")}, 'requested', seq
FROM unnest(%(hub)b::text[], %(invocation_id)b::text[], %(seq)b::bigint[], %(target)b::text[], %(arguments)b::bytea[],
            %(selector)b::bytea[], %(caller)b::text[], %(ttl_ms)b::bigint[], %(requested_at)b::bigint[])
     AS t (hub, invocation_id, seq, target, arguments, selector, caller, ttl_ms, requested_at)
ON CONFLICT (hub, invocation_id) DO NOTHING"""

OUTCOMES: LiteralString = """
UPDATE invocations i SET status = t.status, status_seq = t.seq
FROM unnest(%(hub)b::text[], %(invocation_id)b::text[], %(status)b::text[], %(seq)b::bigint[])
     AS t (hub, invocation_id, status, seq)
WHERE i.hub = t.hub AND i.invocation_id = t.invocation_id AND i.status_seq < t.seq"""

NODES: LiteralString = f"""
INSERT INTO nodes AS n (node, incarnation, state, seq, changed_at, version, url, started_seq, started_at)
SELECT node, incarnation, state, seq, {TIME.format("changed_at")}, version, url, started_seq,
       {TIME.format("started_at")}
FROM unnest(%(node)b::text[], %(incarnation)b::text[], %(state)b::text[], %(seq)b::bigint[], %(changed_at)b::bigint[],
            %(version)b::text[], %(url)b::text[], %(started_seq)b::bigint[], %(started_at)b::bigint[])
     AS t (node, incarnation, state, seq, changed_at, version, url, started_seq, started_at)
ON CONFLICT (node, incarnation) DO UPDATE SET
    state = excluded.state, seq = excluded.seq, changed_at = excluded.changed_at,
    version = CASE WHEN excluded.started_seq IS NULL THEN n.version ELSE excluded.version END,
    url = CASE WHEN excluded.started_seq IS NULL THEN n.url ELSE excluded.url END,
    started_seq = coalesce(excluded.started_seq, n.started_seq),
    started_at = coalesce(excluded.started_at, n.started_at)
WHERE n.seq < excluded.seq"""

PARKED: LiteralString = """
INSERT INTO parked (partition, seq, subject, code, reason)
SELECT %(partition)b, seq, subject, code, reason
FROM unnest(%(seq)b::bigint[], %(subject)b::text[], %(code)b::text[], %(reason)b::text[])
     AS t (seq, subject, code, reason)
ON CONFLICT (partition, seq) DO NOTHING"""

HUBS: LiteralString = """
INSERT INTO hubs AS h (partition, hub, seq, active, detached, closed)
SELECT %(partition)b, hub, seq, active, detached, closed
FROM unnest(%(hubs)b::text[], %(last_seq)b::bigint[], %(active)b::bigint[], %(detached)b::bigint[],
            %(closed)b::bigint[])
     AS t (hub, seq, active, detached, closed)
ON CONFLICT (hub) DO UPDATE SET
    seq = greatest(h.seq, excluded.seq), active = h.active + excluded.active,
    detached = h.detached + excluded.detached, closed = h.closed + excluded.closed"""

# One turn to Postgres instead of two, for what most batches of a busy hub are.
INVOCATIONS_AND_HUBS: LiteralString = f"WITH called AS ({_INVOCATIONS}\n){HUBS}"
