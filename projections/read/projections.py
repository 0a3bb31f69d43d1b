"""How far the read models are, partition by partition, and what could not be read."""

from datetime import datetime
from typing import Any, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import REFLECTS, Page
from projections.read.model import ReadModel


class Projection(msgspec.Struct, frozen=True, rename="camel"):
    """Everything stored until ``as_of`` is in the rows, except ``parked`` events on ``parked_subjects`` subjects."""

    partition: int
    position: str
    as_of: datetime
    age_ms: int
    parked: int
    parked_subjects: int


_PAGE: LiteralString = f"""
SELECT {REFLECTS}, c.partition, c.as_of, p.events, p.subjects
FROM checkpoints c CROSS JOIN LATERAL (
    SELECT count(*) AS events, count(DISTINCT subject) AS subjects FROM parked WHERE partition = c.partition
) p ORDER BY c.partition"""


async def page(model: ReadModel) -> Page[Projection]:
    rows = await model.rows(_PAGE, {})
    items = [_projection(row) for row in rows]
    whole = items[0].position if len(items) == 1 else None
    return Page(items, None, whole, max((item.age_ms for item in items), default=0))


def _projection(row: tuple[Any, ...]) -> Projection:
    epoch, sequence, age_ms, partition, as_of, parked, subjects = row
    return Projection(partition, answers.position(epoch, partition, sequence), as_of, age_ms, parked, subjects)
