"""The read models as they are in Postgres, in the shape of ``plain_fold``."""

from typing import Any

import msgspec
import psycopg


def _us(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000000)::bigint AS {column}"


QUERIES = {
    "event_log": f"SELECT seq, subject, headers, payload, {_us('stored_at')} FROM event_log WHERE partition = %s",
    "sessions": f"""SELECT hub, session_id, seq, state, reason, resumable, user_id, node, incarnation, connection,
        generation, groups, metadata, opened_seq, {_us("opened_at")}, {_us("detached_at")},
        {_us("last_seen_at")}, {_us("closed_at")} FROM sessions WHERE partition = %s""",
    "memberships": f"""SELECT hub, session_id, group_name, joined_seq, {_us("joined_at")}, left_seq, {_us("left_at")}
        FROM memberships JOIN sessions USING (hub, session_id) WHERE partition = %s""",
    "groups": "SELECT hub, group_name, size, attached FROM groups JOIN hubs USING (hub) WHERE partition = %s",
    "hubs": "SELECT hub, seq, active, detached, closed FROM hubs WHERE partition = %s",
    "invocations": f"""SELECT hub, invocation_id, seq, target, arguments, selector, caller, ttl_ms,
        {_us("requested_at")}, status, status_seq FROM invocations WHERE partition = %s""",
    "nodes": f"""SELECT node, incarnation, state, version, url, started_seq, {_us("started_at")}, seq,
        {_us("changed_at")} FROM nodes WHERE %s = 0""",
    "parked": "SELECT seq, subject FROM parked WHERE partition = %s",
}
KEYS = {"event_log": 1, "memberships": 4, "groups": 2, "hubs": 1, "parked": 1}
AS_ROWS = {"sessions", "invocations", "nodes"}


async def dump(dsn: str, partition: int = 0) -> dict[str, Any]:
    """Every table of one partition."""
    tables: dict[str, Any] = {}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for table, query in QUERIES.items():
            cursor = await connection.execute(query, (partition,))  # type: ignore[arg-type]
            columns = [column.name for column in cursor.description or ()]
            tables[table] = dict(_entry(table, columns, row) for row in await cursor.fetchall())
    return tables


async def checkpoint(dsn: str, partition: int = 0) -> int:
    """How far a partition is projected; 0 before anything is."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT sequence FROM checkpoints WHERE partition = %s", (partition,))
        found = await cursor.fetchone()
        return found[0] if found else 0


def _entry(table: str, columns: list[str], row: tuple[Any, ...]) -> tuple[Any, Any]:
    if table in AS_ROWS:
        named = dict(zip(columns[2:], row[2:], strict=True))
        if "selector" in named:
            named["selector"] = msgspec.json.decode(named["selector"])
        return (row[0], row[1]), named
    width = KEYS[table]
    rest = row[width:]
    return row[0] if width == 1 else row[:width], rest[0] if len(rest) == 1 else rest
