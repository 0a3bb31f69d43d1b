"""Sessions of a hub: by state, user, group and node, ascending by id."""

from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Found, LastRenewal, Page, never_renewed
from projections.read.model import ReadModel

State = Literal["active", "detached", "closed"]
STATES: tuple[State, ...] = ("active", "detached", "closed")


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """``last_seen_at`` of an active session is when its node renewed its lease, or its opening if that came later."""

    session_id: str
    user_id: str | None
    state: State
    node: str
    groups: list[str]
    metadata: msgspec.Raw
    opened_at: datetime | None
    last_seen_at: datetime | None
    position: str


_COLUMNS: LiteralString = (
    "s.session_id, s.user_id, s.state, s.node, s.groups, s.metadata, s.opened_at,"
    " coalesce(s.last_seen_at, s.closed_at) AS last_seen_at, s.seq, s.incarnation"
)
# By the narrowest index there is; filters that it does not cover are applied on the way. With a user or node but no
# state, the three states are three ordered scans of ``limit`` rows, merged: never a sort of all there are.
_ANY: LiteralString = f"""
    SELECT {_COLUMNS} FROM sessions s
    WHERE s.hub = %(hub)s AND s.session_id > %(after)s {{more}}
    ORDER BY s.session_id LIMIT %(take)s"""
_BY_STATES: LiteralString = f"""
    SELECT s.* FROM unnest(%(states)s::text[]) AS wanted(state) CROSS JOIN LATERAL (
        SELECT {_COLUMNS} FROM sessions s
        WHERE s.hub = %(hub)s AND s.state = wanted.state AND s.session_id > %(after)s {{more}}
        ORDER BY s.session_id LIMIT %(take)s
    ) s ORDER BY s.session_id LIMIT %(take)s"""
# OFFSET 0 keeps the planner to this: members in order, and each one's row by its key, until the page is full.
_BY_GROUP: LiteralString = f"""
    SELECT s.* FROM memberships m CROSS JOIN LATERAL (
        SELECT {_COLUMNS} FROM sessions s WHERE s.hub = m.hub AND s.session_id = m.session_id OFFSET 0
    ) s
    WHERE m.hub = %(hub)s AND m.group_name = %(group)s AND m.left_seq IS NULL AND m.session_id > %(after)s {{more}}
    ORDER BY m.session_id LIMIT %(take)s"""
_ONE: LiteralString = f"SELECT {_COLUMNS} FROM sessions s WHERE s.hub = %(hub)s AND s.session_id = %(session)s"


def _statement(inner: LiteralString, more: LiteralString = "") -> LiteralString:
    return (
        f"SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL ({inner.format(more=more)}) p ON true"
        " WHERE c.partition = %(partition)s ORDER BY p.session_id"
    )


_FIND = _statement(_ONE)


async def page(
    model: ReadModel,
    hub: str,
    *,
    state: State | None = None,
    user: str | None = None,
    group: str | None = None,
    node: str | None = None,
    limit: int = LIMIT_DEFAULT,
    after: str | None = None,
    last_renewal: LastRenewal = never_renewed,
) -> Page[Session]:
    partition = model.partition(hub)
    values: dict[str, object] = {
        "hub": hub,
        "states": [state] if state else list(STATES),
        "user": user,
        "group": group,
        "node": node,
        "after": after or "",
        "take": limit + 1,
    }
    rows = await model.answer(_choose(state, user, group, node), partition, values)
    return answers.page(
        rows, partition, limit, lambda epoch, row: _session(epoch, partition, row, last_renewal), lambda s: s.session_id
    )


async def find(
    model: ReadModel, hub: str, session_id: str, *, last_renewal: LastRenewal = never_renewed
) -> Found[Session]:
    partition = model.partition(hub)
    rows = await model.answer(_FIND, partition, {"hub": hub, "session": session_id})
    return answers.found(rows, partition, lambda epoch, row: _session(epoch, partition, row, last_renewal))


def _choose(state: State | None, user: str | None, group: str | None, node: str | None) -> LiteralString:
    """The statement for these filters: a user has few sessions, a group fewer than a node, a state the most."""
    more: LiteralString = ""
    if user is not None:
        more += " AND s.user_id = %(user)s"
    if node is not None:
        more += " AND s.node = %(node)s"
    if group is not None:
        if user is None:
            return _statement(_BY_GROUP, more + (" AND s.state = ANY(%(states)s::text[])" if state else ""))
        more += " AND %(group)s = ANY(s.groups)"
    if user is None and node is None and state is None:
        return _statement(_ANY)
    return _statement(_BY_STATES, more)


def _session(epoch: str, partition: int, row: tuple[Any, ...], last_renewal: LastRenewal) -> Session:
    session_id, user_id, state, node, groups, metadata, opened_at, last_seen_at, seq, incarnation = row
    if state == "active":
        # It was there when it opened, whatever is known of renewals since.
        moments = (opened_at, answers.moment(last_renewal(incarnation)))
        last_seen_at = max((moment for moment in moments if moment is not None), default=None)
    return Session(
        session_id,
        user_id,
        state,
        node,
        groups,
        msgspec.Raw(metadata),
        opened_at,
        last_seen_at,
        answers.position(epoch, partition, seq),
    )
