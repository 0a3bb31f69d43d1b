"""What every answer has around its items, and how a row becomes one. Knows no table."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec

from events.errors import EpochMismatch, InvalidPosition, InvalidQuery, ReadModelUnavailable
from events.ids import b64url, from_b64url, parse_position

T = TypeVar("T")

LIMIT_DEFAULT = 100
# When the lease of an incarnation was last renewed, microseconds since 1970.
LastRenewal = Callable[[str], int | None]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The head of every row of an answer: the checkpoint that it reflects. Followed by the columns of the item.
REFLECTS = "c.epoch, c.sequence, (greatest(extract(epoch FROM now() - c.as_of), 0) * 1000)::bigint"
HEAD = 3


class Page(msgspec.Struct, Generic[T], frozen=True, rename="camel"):
    """``position`` and ``age_ms``: everything up to there, and everything older than that, is in ``items``.

    ``position`` is None for lists across several partitions, whose items have their own.
    """

    items: list[T]
    next: str | None
    position: str | None
    age_ms: int


class Found(msgspec.Struct, Generic[T], frozen=True, rename="camel"):
    """One item, or None; with the position that says so."""

    item: T | None
    position: str
    age_ms: int


def never_renewed(_incarnation: str) -> int | None:
    """For who does not watch leases."""
    return None


def moment(at_us: int | None) -> datetime | None:
    return None if at_us is None else EPOCH + timedelta(microseconds=at_us)


def position(epoch: str, partition: int, sequence: int) -> str:
    return f"{epoch}.{partition}-{sequence}"


def page(
    rows: Sequence[tuple[Any, ...]],
    partition: int,
    limit: int,
    item: Callable[[str, tuple[Any, ...]], T],
    cursor: Callable[[T], str],
) -> Page[T]:
    """A page of at most ``limit`` items; the query asked for one more, to know whether there is a next page.

    A row without an item (null in its first column) only tells what the answer reflects.
    """
    epoch, sequence, age_ms = rows[0][:HEAD]
    items = [item(epoch, row[HEAD:]) for row in rows[:limit] if row[HEAD] is not None]
    following = cursor(items[-1]) if len(rows) > limit else None
    return Page(items, following, position(epoch, partition, sequence), age_ms)


def across(
    rows: Sequence[tuple[Any, ...]],
    partitions: int,
    limit: int,
    item: Callable[[str, tuple[Any, ...]], T],
    cursor: Callable[[T], str],
) -> Page[T]:
    """As :func:`page`, over all partitions: with one there is one position, with several there is none. The cursor is
    opaque."""
    if rows[0][0] is None:
        raise ReadModelUnavailable("there is no checkpoint: no projector has run yet")
    one = page(rows, 0, limit, item, lambda last: b64url(cursor(last).encode()))
    return one if partitions == 1 else msgspec.structs.replace(one, position=None)


def opaque(after: str | None) -> str:
    """What is in an opaque cursor. Raises: InvalidQuery."""
    try:
        return from_b64url(after or "").decode()
    except ValueError as exc:
        raise InvalidQuery("`after` is not a cursor of this list") from exc


def found(rows: Sequence[tuple[Any, ...]], partition: int, item: Callable[[str, tuple[Any, ...]], T]) -> Found[T]:
    epoch, sequence, age_ms = rows[0][:HEAD]
    columns = rows[0][HEAD:]
    return Found(None if columns[0] is None else item(epoch, columns), position(epoch, partition, sequence), age_ms)


def sequence_after(after: str, partition: int) -> int:
    """The sequence in a cursor that is a position. Raises: InvalidPosition."""
    place = parse_position(after)
    if place.partition != partition:
        raise InvalidPosition(f"{after} is of partition {place.partition}, this hub is in {partition}")
    return place.sequence


def same_epoch(after: str | None, rows: Sequence[tuple[Any, ...]]) -> None:
    """Raises: EpochMismatch for a cursor of another life of the log."""
    if after is not None and parse_position(after).epoch != rows[0][0]:
        raise EpochMismatch(f"{after} is not of this log, which is {rows[0][0]}")
