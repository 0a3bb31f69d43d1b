"""Hubs that have an event, across all partitions, ascending by name; and how many sessions each has."""

from typing import Any, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Found, Page
from projections.read.model import ReadModel


class Hub(msgspec.Struct, frozen=True, rename="camel"):
    """Sessions by state, and the position of the hub's last event."""

    hub: str
    active: int
    detached: int
    closed: int
    position: str


_PAGE: LiteralString = f"""
SELECT c.*, p.* FROM (
    SELECT min(epoch), max(sequence), max(age) FROM (
        SELECT {REFLECTS} AS age FROM checkpoints c
    ) c (epoch, sequence, age)
) c LEFT JOIN LATERAL (
    SELECT h.hub, h.active, h.detached, h.closed, h.seq, h.partition, k.epoch
    FROM hubs h JOIN checkpoints k USING (partition)
    WHERE h.hub > %(after)s ORDER BY h.hub LIMIT %(take)s
) p ON true ORDER BY p.hub"""
_FIND: LiteralString = f"""
SELECT {REFLECTS}, h.hub, h.active, h.detached, h.closed, h.seq, h.partition, c.epoch
FROM checkpoints c LEFT JOIN hubs h ON h.hub = %(hub)s WHERE c.partition = %(partition)s"""

_SUMS: LiteralString = "SELECT coalesce(sum(active), 0)::bigint, coalesce(sum(detached), 0)::bigint FROM hubs"


async def page(model: ReadModel, *, limit: int = LIMIT_DEFAULT, after: str | None = None) -> Page[Hub]:
    rows = await model.rows(_PAGE, {"after": answers.opaque(after), "take": limit + 1})
    return answers.across(rows, model.partitions, limit, _hub, lambda hub: hub.hub)


async def find(model: ReadModel, hub: str) -> Found[Hub]:
    partition = model.partition(hub)
    return answers.found(await model.answer(_FIND, partition, {"hub": hub}), partition, _hub)


async def sessions_by_state(model: ReadModel) -> dict[str, int]:
    """How many sessions all hubs have, active and detached. Raises: ReadModelUnavailable."""
    active, detached = (await model.rows(_SUMS, {}))[0]
    return {"active": active, "detached": detached}


def _hub(_epoch: str, row: tuple[Any, ...]) -> Hub:
    name, active, detached, closed, seq, partition, epoch = row
    return Hub(name, active, detached, closed, answers.position(epoch, partition, seq))
