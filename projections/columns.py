"""The columns of rows as arrays in Postgres' binary format, made at the cost of a join.

Surprising because psycopg dumps lists as well: it asks each element for its type, and then calls Python for each, which
made a live batch a tenth dearer for the projector. Knows no table.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from struct import Struct as Layout
from struct import error as NotInRange  # noqa: N812  it is that, and named like a module

import psycopg
from psycopg import adapt, postgres, pq

# An array: dimensions, whether there are nulls, type; then length and lower bound; then every field behind its length.
_HEAD = Layout("!iiiii").pack
_EMPTY = Layout("!iii").pack
_LENGTH = Layout("!i").pack
_NULL = _LENGTH(-1)
_BIGINT = Layout("!iq").pack
_TRUE, _FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"


class Column(bytes):
    """An array as Postgres takes it, for a parameter written ``%(name)b``."""

    __slots__ = ()


class _Texts(Column):
    __slots__ = ()


class _Byteas(Column):
    __slots__ = ()


class _Bigints(Column):
    __slots__ = ()


class _Booleans(Column):
    __slots__ = ()


_TYPES: dict[type[Column], str] = {_Texts: "text", _Byteas: "bytea", _Bigints: "int8", _Booleans: "bool"}
_OIDS = {kind: postgres.types[name].oid for kind, name in _TYPES.items()}


def texts(values: Sequence[str | None]) -> Column:
    """Raises: UnicodeEncodeError."""
    return _of_fields(_Texts, [None if value is None else value.encode() for value in values])


def byteas(values: Sequence[bytes | None]) -> Column:
    return _of_fields(_Byteas, values)


def bigints(values: Sequence[int | None]) -> Column:
    """Raises: psycopg.DataError for what is out of range, as Postgres would say."""
    try:
        return _joined(_Bigints, values, [_NULL if value is None else _BIGINT(8, value) for value in values])
    except NotInRange as exc:
        raise psycopg.DataError("a number is out of the range of a bigint") from exc


def booleans(values: Sequence[bool]) -> Column:
    return _joined(_Booleans, values, [_TRUE if value else _FALSE for value in values])


def _of_fields(kind: type[Column], values: Sequence[bytes | None]) -> Column:
    """Hot path: without nulls, all that is done for each field is done in C."""
    fields = [value for value in values if value is not None]
    if len(fields) < len(values):
        return _joined(kind, values, [_NULL if value is None else _LENGTH(len(value)) + value for value in values])
    return _joined(kind, values, chain.from_iterable(zip(map(_LENGTH, map(len, fields)), fields, strict=True)))


def _joined(kind: type[Column], values: Sequence[object], parts: Iterable[bytes]) -> Column:
    if not values:
        return kind(_EMPTY(0, 0, _OIDS[kind]))
    return kind(_HEAD(1, None in values, _OIDS[kind], len(values), 1) + b"".join(parts))


def _register(kind: type[Column], name: str) -> None:
    class ColumnDumper(adapt.Dumper):
        format = pq.Format.BINARY
        oid = postgres.types[name].array_oid

        def dump(self, obj: Column) -> Column:
            return obj

    psycopg.adapters.register_dumper(kind, ColumnDumper)


for _kind, _name in _TYPES.items():
    _register(_kind, _name)
