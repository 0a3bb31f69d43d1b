"""A batch of rows into Postgres: static SQL, one transaction with the checkpoint (DESIGN: projections).

Owns how rows merge: a session, node or outcome only moves forward by sequence, a stay only gains what it did not know,
counts move by what really changed. So any range of the log may be written again without effect. Makes no rows and
decides nothing about batches.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from projections import log_copy, statements
from projections.checkpoint import Checkpoint, Connection, move
from projections.fold import NodeRow, ParkedRow, Rows, SessionKey, SessionRow, Stay, StayKey

CHANNEL = "hublog_projected"
REASON_CHARACTERS_MAX = 500


class Superseded(Exception):
    """The checkpoint was not where this projector left it: another one is at work."""


async def store(connection: Connection, expected: Checkpoint, rows: Rows) -> Checkpoint:
    """Write a batch that directly follows ``expected``, and move the checkpoint to its end. All or nothing.

    ``connection`` is in autocommit mode. Raises: Superseded, psycopg.Error.
    """
    async with connection.transaction():
        # First, because it holds off any other projector until this transaction ends.
        target = await move(connection, expected, rows.log[-1].event)
        if target is None:
            raise Superseded(f"partition {expected.partition} is not at {expected.sequence} any more")
        await _write(connection, expected.partition, rows)
        await connection.execute(statements.NOTIFY, (CHANNEL, f"{target.partition} {target.sequence}"))
    return target


async def refusal(connection: Connection, partition: int, rows: Rows) -> psycopg.Error | None:
    """What Postgres would refuse these rows with, if it would; nothing is kept. Raises: other psycopg.Error."""
    try:
        async with connection.transaction(force_rollback=True):
            await _write(connection, partition, rows)
    except psycopg.Error as exc:
        if not is_poison(exc):
            raise
        return exc
    return None


def is_poison(exc: psycopg.Error) -> bool:
    """Whether Postgres refused what a row says (out of range, too long, against a constraint): again is no help."""
    return isinstance(exc, psycopg.DataError | psycopg.IntegrityError) or (exc.sqlstate or "").startswith("54")


async def _write(connection: Connection, partition: int, rows: Rows) -> None:
    """Everything but the checkpoint."""
    await log_copy.append(connection, partition, rows.log)
    if rows.invocations:
        await connection.execute(statements.INVOCATIONS, {"partition": partition, **_invocations(rows)})
    if rows.outcomes:
        await connection.execute(statements.OUTCOMES, _outcomes(rows))
    if rows.nodes:
        await connection.execute(statements.NODES, _nodes(rows.nodes))
    if rows.stays:
        await connection.execute(statements.STAYS, _stays(rows.stays))
    if rows.parked:
        await connection.execute(statements.PARKED, {"partition": partition, **_parked(rows.parked)})
    changes: list[tuple[Any, ...]] = []
    if rows.sessions:
        answer = await connection.execute(statements.SESSIONS, {"partition": partition, **_sessions(rows.sessions)})
        changes = await answer.fetchall()
    empty = [(hub, group) for hub, group, *_ in changes if group is not None]
    if empty:
        await connection.execute(
            statements.FORGET_GROUPS, {"hub": [hub for hub, _ in empty], "group_name": [g for _, g in empty]}
        )
    if rows.hubs:
        counts = {hub: by_state for hub, group, *by_state in changes if group is None}
        await connection.execute(statements.HUBS, {"partition": partition, **_hubs(rows.hubs, counts)})


def _sessions(sessions: dict[SessionKey, SessionRow]) -> dict[str, list[Any]]:
    rows = list(sessions.values())
    states = [row.state for row in rows]
    return {
        "hub": [hub for hub, _ in sessions],
        "session_id": [session for _, session in sessions],
        "seq": [row.seq for row in rows],
        "state": [state.status for state in states],
        "reason": [state.reason for state in states],
        "resumable": [state.resumable for state in states],
        "user_id": [state.user for state in states],
        "node": [state.node for state in states],
        "incarnation": [state.incarnation for state in states],
        "connection": [state.connection for state in states],
        "generation": [state.generation for state in states],
        "groups": [_array(sorted(state.groups)) for state in states],
        "metadata": [bytes(state.metadata) for state in states],
        "opened_seq": [state.opened for state in states],
        "opened_at": [row.opened_at_us for row in rows],
        "detached_at": [state.detached_since_us for state in states],
        "closed_at": [row.closed_at_us for row in rows],
        "last_seen_at": [row.last_seen_us for row in rows],
        "seen": [row.seen for row in rows],
    }


def _array(names: Iterable[str]) -> str:
    """The text form of a text[]: arrays of arrays cannot be ragged, so each travels as text."""
    return "{" + ",".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names) + "}"


def _stays(stays: dict[StayKey, Stay]) -> dict[str, list[Any]]:
    rows = stays.values()
    return {
        "hub": [hub for hub, *_ in stays],
        "session_id": [session for _, session, *_ in stays],
        "group_name": [group for _, _, group, _ in stays],
        "joined_seq": [joined for *_, joined in stays],
        "joined_at": [stay.joined_at_us for stay in rows],
        "left_seq": [stay.left_seq for stay in rows],
        "left_at": [stay.left_at_us for stay in rows],
    }


def _invocations(rows: Rows) -> dict[str, list[Any]]:
    columns = _columns(rows.invocations, "hub invocation_id seq target arguments selector caller ttl_ms")
    return {**columns, "requested_at": [row.requested_at_us for row in rows.invocations]}


def _outcomes(rows: Rows) -> dict[str, list[Any]]:
    return {
        "hub": [hub for hub, _ in rows.outcomes],
        "invocation_id": [ident for _, ident in rows.outcomes],
        "status": [status for status, _ in rows.outcomes.values()],
        "seq": [seq for _, seq in rows.outcomes.values()],
    }


def _parked(parked: Sequence[ParkedRow]) -> dict[str, list[Any]]:
    columns = _columns(parked, "seq code")
    return {
        **columns,
        "subject": [log_copy.text(row.subject) for row in parked],
        "reason": [log_copy.text(row.reason[:REASON_CHARACTERS_MAX]) for row in parked],
    }


def _nodes(nodes: dict[tuple[str, str], NodeRow]) -> dict[str, list[Any]]:
    rows = list(nodes.values())
    return {
        "node": [name for name, _ in nodes],
        "incarnation": [incarnation for _, incarnation in nodes],
        **_columns(rows, "state seq version url started_seq"),
        "changed_at": [row.changed_at_us for row in rows],
        "started_at": [row.started_at_us for row in rows],
    }


def _hubs(hubs: dict[str, int], counts: dict[str, list[int]]) -> dict[str, list[Any]]:
    by_state = [counts.get(hub, [0, 0, 0]) for hub in hubs]
    return {
        "hub": list(hubs),
        "seq": list(hubs.values()),
        "active": [active for active, _, _ in by_state],
        "detached": [detached for _, detached, _ in by_state],
        "closed": [closed for _, _, closed in by_state],
    }


def _columns(rows: Sequence[Any], names: str) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in names.split()}
