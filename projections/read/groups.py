"""Groups that have a member, ascending by name."""

from typing import Any, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Found, Page
from projections.read.model import ReadModel


class Group(msgspec.Struct, frozen=True, rename="camel"):
    """``size`` counts members, ``attached`` those of them with a connection."""

    group: str
    size: int
    attached: int


_PAGE: LiteralString = f"""
SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL (
    SELECT group_name, size, attached FROM groups WHERE hub = %(hub)s AND group_name > %(after)s
    ORDER BY group_name LIMIT %(take)s
) p ON true WHERE c.partition = %(partition)s ORDER BY p.group_name"""
_FIND: LiteralString = f"""
SELECT {REFLECTS}, g.group_name, g.size, g.attached
FROM checkpoints c LEFT JOIN groups g ON g.hub = %(hub)s AND g.group_name = %(group)s
WHERE c.partition = %(partition)s"""


async def page(model: ReadModel, hub: str, *, limit: int = LIMIT_DEFAULT, after: str | None = None) -> Page[Group]:
    partition = model.partition(hub)
    rows = await model.answer(_PAGE, partition, {"hub": hub, "after": after or "", "take": limit + 1})
    return answers.page(rows, partition, limit, _group, lambda group: group.group)


async def find(model: ReadModel, hub: str, group: str) -> Found[Group]:
    partition = model.partition(hub)
    rows = await model.answer(_FIND, partition, {"hub": hub, "group": group})
    return answers.found(rows, partition, _group)


def _group(_epoch: str, row: tuple[Any, ...]) -> Group:
    return Group(*row)
