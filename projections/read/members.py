"""Who is in a group now, ascending by session id."""

from datetime import datetime
from typing import Any, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Page
from projections.read.model import ReadModel
from projections.read.sessions import State


class Member(msgspec.Struct, frozen=True, rename="camel"):
    """``joined_at`` is the broker's time of the joining; None when the log has forgotten it."""

    session_id: str
    user_id: str | None
    state: State
    joined_at: datetime | None
    joined_position: str


_PAGE: LiteralString = f"""
SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL (
    SELECT m.session_id, s.user_id, s.state, m.joined_at, m.joined_seq
    FROM memberships m CROSS JOIN LATERAL (
        SELECT user_id, state FROM sessions WHERE hub = m.hub AND session_id = m.session_id OFFSET 0
    ) s
    WHERE m.hub = %(hub)s AND m.group_name = %(group)s AND m.left_seq IS NULL AND m.session_id > %(after)s
    ORDER BY m.session_id LIMIT %(take)s
) p ON true WHERE c.partition = %(partition)s ORDER BY p.session_id"""


async def page(
    model: ReadModel, hub: str, group: str, *, limit: int = LIMIT_DEFAULT, after: str | None = None
) -> Page[Member]:
    partition = model.partition(hub)

    def member(epoch: str, row: tuple[Any, ...]) -> Member:
        session_id, user_id, state, joined_at, joined_seq = row
        return Member(session_id, user_id, state, joined_at, answers.position(epoch, partition, joined_seq))

    values = {"hub": hub, "group": group, "after": after or "", "take": limit + 1}
    rows = await model.answer(_PAGE, partition, values)
    return answers.page(rows, partition, limit, member, lambda one: one.session_id)
