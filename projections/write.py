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
from projections.columns import Column, bigints, booleans, byteas, texts
from projections.fold import InvocationRow, NodeRow, ParkedRow, Rows, SessionKey, SessionRow, Stay, StayKey

REASON_CHARACTERS_MAX = 500


class Superseded(Exception):
    """The checkpoint was not where this projector left it: another one is at work."""


async def store(connection: Connection, expected: Checkpoint, rows: Rows) -> Checkpoint:
    """Write a batch that directly follows ``expected``, and move the checkpoint to its end. All or nothing.

    ``connection`` is in autocommit mode. Raises: Superseded, psycopg.Error.
    """
    return await _write(connection, expected, rows, keep=True)


async def refusal(connection: Connection, expected: Checkpoint, rows: Rows) -> psycopg.Error | None:
    """What Postgres would refuse this batch with, if it would; nothing is kept. Raises: Superseded, other errors."""
    try:
        await _write(connection, expected, rows, keep=False)
    except psycopg.Error as exc:
        if not is_poison(exc):
            raise
        return exc
    return None


def is_poison(exc: psycopg.Error) -> bool:
    """Whether Postgres refused what a row says (out of range, too long, against a constraint): again is no help."""
    return isinstance(exc, psycopg.DataError | psycopg.IntegrityError) or (exc.sqlstate or "").startswith("54")


async def _write(connection: Connection, expected: Checkpoint, rows: Rows, *, keep: bool) -> Checkpoint:
    async with connection.transaction(force_rollback=not keep):
        # First, because it holds off any other projector until this transaction ends.
        moved = await move(connection, expected, rows.log[-1].event)
        if moved is None:
            raise Superseded(f"partition {expected.partition} is not at {expected.sequence} any more")
        target, known = moved
        await log_copy.append(connection, expected.partition, rows.log, known)
        await _merge(connection, expected.partition, rows)
    return target


async def _merge(connection: Connection, partition: int, rows: Rows) -> None:
    """Everything but the checkpoint and the log."""
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
        names = {"hub": texts([hub for hub, _ in empty]), "group_name": texts([group for _, group in empty])}
        await connection.execute(statements.FORGET_GROUPS, names)
    counts = {hub: by_state for hub, group, *by_state in changes if group is None}
    values = {"partition": partition, **_hubs(rows.hubs, counts)}
    if rows.invocations:
        await connection.execute(statements.INVOCATIONS_AND_HUBS, {**values, **_invocations(rows.invocations)})
    elif rows.hubs:
        await connection.execute(statements.HUBS, values)
    if rows.outcomes:  # of what may have been asked in this very batch
        await connection.execute(statements.OUTCOMES, _outcomes(rows.outcomes))


def _sessions(sessions: dict[SessionKey, SessionRow]) -> dict[str, Column]:
    rows = list(sessions.values())
    states = [row.state for row in rows]
    return {
        "hub": texts([hub for hub, _ in sessions]),
        "session_id": texts([session for _, session in sessions]),
        "seq": bigints([row.seq for row in rows]),
        "state": texts([state.status for state in states]),
        "reason": texts([state.reason for state in states]),
        "resumable": booleans([state.resumable for state in states]),
        "user_id": texts([state.user for state in states]),
        "node": texts([state.node for state in states]),
        "incarnation": texts([state.incarnation for state in states]),
        "connection": texts([state.connection for state in states]),
        "generation": bigints([state.generation for state in states]),
        "groups": texts([_array(sorted(state.groups)) for state in states]),
        "metadata": byteas([bytes(state.metadata) for state in states]),
        "opened_seq": bigints([state.opened for state in states]),
        "opened_at": bigints([row.opened_at_us for row in rows]),
        "detached_at": bigints([state.detached_since_us for state in states]),
        "closed_at": bigints([row.closed_at_us for row in rows]),
        "last_seen_at": bigints([row.last_seen_us for row in rows]),
        "seen": booleans([row.seen for row in rows]),
    }


def _array(names: Iterable[str]) -> str:
    """The text form of a text[]: arrays of arrays cannot be ragged, so each travels as text."""
    return "{" + ",".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names) + "}"


def _stays(stays: dict[StayKey, Stay]) -> dict[str, Column]:
    rows = stays.values()
    return {
        "hub": texts([hub for hub, *_ in stays]),
        "session_id": texts([session for _, session, *_ in stays]),
        "group_name": texts([group for _, _, group, _ in stays]),
        "joined_seq": bigints([joined for *_, joined in stays]),
        "joined_at": bigints([stay.joined_at_us for stay in rows]),
        "left_seq": bigints([stay.left_seq for stay in rows]),
        "left_at": bigints([stay.left_at_us for stay in rows]),
    }


def _invocations(rows: Sequence[InvocationRow]) -> dict[str, Column]:
    return {
        "hub": texts([row.hub for row in rows]),
        "invocation_id": texts([row.invocation_id for row in rows]),
        "seq": bigints([row.seq for row in rows]),
        "target": texts([row.target for row in rows]),
        "arguments": byteas([row.arguments for row in rows]),
        "selector": byteas([row.selector for row in rows]),
        "caller": texts([row.caller for row in rows]),
        "ttl_ms": bigints([row.ttl_ms for row in rows]),
        "requested_at": bigints([row.requested_at_us for row in rows]),
    }


def _outcomes(outcomes: dict[tuple[str, str], tuple[str, int]]) -> dict[str, Column]:
    return {
        "hub": texts([hub for hub, _ in outcomes]),
        "invocation_id": texts([ident for _, ident in outcomes]),
        "status": texts([status for status, _ in outcomes.values()]),
        "seq": bigints([seq for _, seq in outcomes.values()]),
    }


def _parked(parked: Sequence[ParkedRow]) -> dict[str, Column]:
    return {
        "seq": bigints([row.seq for row in parked]),
        "subject": texts([log_copy.text(row.subject) for row in parked]),
        "code": texts([row.code for row in parked]),
        "reason": texts([log_copy.text(row.reason[:REASON_CHARACTERS_MAX]) for row in parked]),
    }


def _nodes(nodes: dict[tuple[str, str], NodeRow]) -> dict[str, Column]:
    rows = list(nodes.values())
    return {
        "node": texts([name for name, _ in nodes]),
        "incarnation": texts([incarnation for _, incarnation in nodes]),
        "state": texts([row.state for row in rows]),
        "seq": bigints([row.seq for row in rows]),
        "version": texts([row.version for row in rows]),
        "url": texts([row.url for row in rows]),
        "started_seq": bigints([row.started_seq for row in rows]),
        "changed_at": bigints([row.changed_at_us for row in rows]),
        "started_at": bigints([row.started_at_us for row in rows]),
    }


def _hubs(hubs: dict[str, int], counts: dict[str, list[int]]) -> dict[str, Column]:
    by_state = [counts.get(hub, [0, 0, 0]) for hub in hubs]
    return {
        "hubs": texts(list(hubs)),
        "last_seq": bigints(list(hubs.values())),
        "active": bigints([active for active, _, _ in by_state]),
        "detached": bigints([detached for _, detached, _ in by_state]),
        "closed": bigints([closed for _, _, closed in by_state]),
    }
