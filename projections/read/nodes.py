"""Gateway processes, each in its newest incarnation, ascending by name. They are facts of partition 0."""

from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, LastRenewal, Page, never_renewed
from projections.read.model import ReadModel

PARTITION = 0


class Node(msgspec.Struct, frozen=True, rename="camel"):
    """``last_seen_at``: when its lease was last renewed. ``state`` is what the log says of it."""

    node: str
    incarnation: str
    state: Literal["started", "draining", "lost"]
    version: str | None
    url: str | None
    started_at: datetime | None
    last_seen_at: datetime | None
    position: str


_PAGE: LiteralString = f"""
SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL (
    SELECT DISTINCT ON (node) node, incarnation, state, version, url, started_at, seq FROM nodes
    WHERE node > %(after)s ORDER BY node, coalesce(started_seq, seq) DESC LIMIT %(take)s
) p ON true WHERE c.partition = %(partition)s ORDER BY p.node"""


async def page(
    model: ReadModel,
    *,
    limit: int = LIMIT_DEFAULT,
    after: str | None = None,
    last_renewal: LastRenewal = never_renewed,
) -> Page[Node]:
    def node(epoch: str, row: tuple[Any, ...]) -> Node:
        name, incarnation, state, version, url, started_at, seq = row
        seen_at = answers.moment(last_renewal(incarnation))
        return Node(
            name, incarnation, state, version, url, started_at, seen_at, answers.position(epoch, PARTITION, seq)
        )

    rows = await model.answer(_PAGE, PARTITION, {"after": after or "", "take": limit + 1})
    return answers.page(rows, PARTITION, limit, node, lambda one: one.node)
