"""Calls that were made in a hub, the newest first."""

from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec

from projections.read import answers
from projections.read.answers import LIMIT_DEFAULT, REFLECTS, Found, Page
from projections.read.model import ReadModel

Status = Literal["requested", "answered", "cancelled", "expired"]
SEQUENCE_MAX = 2**63 - 1


class Invocation(msgspec.Struct, frozen=True, rename="camel"):
    """``arguments`` byte for byte as they were sent. ``caller`` is the calling session, else who it was instead:
    ``user:<id>``, ``worker:<name>`` or ``system:<role>``."""

    invocation_id: str
    target: str
    arguments: msgspec.Raw
    selector: msgspec.Raw
    caller: str
    requested_at: datetime
    position: str
    status: Status


_COLUMNS: LiteralString = "invocation_id, target, arguments, selector, caller, requested_at, seq, status"
_PAGE: LiteralString = f"""
SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL (
    SELECT {_COLUMNS} FROM invocations WHERE hub = %(hub)s AND seq < %(before)s ORDER BY seq DESC LIMIT %(take)s
) p ON true WHERE c.partition = %(partition)s ORDER BY p.seq DESC"""
_FIND: LiteralString = f"""
SELECT {REFLECTS}, p.* FROM checkpoints c LEFT JOIN LATERAL (
    SELECT {_COLUMNS} FROM invocations WHERE hub = %(hub)s AND invocation_id = %(invocation)s
) p ON true WHERE c.partition = %(partition)s"""


async def page(model: ReadModel, hub: str, *, limit: int = LIMIT_DEFAULT, after: str | None = None) -> Page[Invocation]:
    partition = model.partition(hub)
    before = SEQUENCE_MAX if after is None else answers.sequence_after(after, partition)
    rows = await model.answer(_PAGE, partition, {"hub": hub, "before": before, "take": limit + 1})
    answers.same_epoch(after, rows)
    return answers.page(
        rows, partition, limit, lambda epoch, row: _invocation(epoch, partition, row), lambda one: one.position
    )


async def find(model: ReadModel, hub: str, invocation_id: str) -> Found[Invocation]:
    partition = model.partition(hub)
    rows = await model.answer(_FIND, partition, {"hub": hub, "invocation": invocation_id})
    return answers.found(rows, partition, lambda epoch, row: _invocation(epoch, partition, row))


def _invocation(epoch: str, partition: int, row: tuple[Any, ...]) -> Invocation:
    ident, target, arguments, selector, caller, requested_at, seq, status = row
    return Invocation(
        ident,
        target,
        msgspec.Raw(arguments),
        msgspec.Raw(selector),
        caller,
        requested_at,
        answers.position(epoch, partition, seq),
        status,
    )
