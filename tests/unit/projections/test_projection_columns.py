"""Columns as binary arrays: byte for byte what psycopg makes of the same lists."""

from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import adapt, pq
from psycopg.adapt import PyFormat

from projections.columns import Column, bigints, booleans, byteas, texts

BIGINT = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def dumped(value: Any) -> tuple[int, bytes]:
    """The type, and the bytes, that psycopg sends for a parameter ``%b``."""
    dumper = adapt.Transformer(None).get_dumper(value, PyFormat.BINARY)
    assert dumper.format == pq.Format.BINARY
    data = dumper.dump(value)
    assert data is not None
    return dumper.oid, bytes(data)


@given(
    st.one_of(
        st.tuples(st.just(texts), st.lists(st.none() | TEXT)),
        st.tuples(st.just(byteas), st.lists(st.none() | st.binary(max_size=40))),
        st.tuples(st.just(booleans), st.lists(st.booleans())),
    )
)
def test_as_psycopg_would(case: tuple[Any, list[Any]]) -> None:
    make, values = case
    oid, data = dumped(make(values))
    if any(value is not None for value in values):
        assert (oid, data) == dumped(values)
    else:  # psycopg does not know of what type they are
        assert data[:4] == (b"\0\0\0\1" if values else b"\0\0\0\0")
        assert len(data) == (20 + 4 * len(values) if values else 12)


@given(st.lists(st.none() | BIGINT, min_size=1))
def test_bigints_are_bigints_however_small(values: list[int | None]) -> None:
    oid, data = dumped(bigints(values))
    wide = [2**62, *values]  # makes psycopg choose that type
    assert (oid, data[20:]) == (dumped(wide)[0], dumped(wide)[1][32:])
    assert data[4:8] == bytes([0, 0, 0, None in values])


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 - 1])
def test_what_no_bigint_holds_is_refused_as_postgres_would(number: int) -> None:
    with pytest.raises(psycopg.DataError, match="range"):
        bigints([1, number])


def test_a_column_is_sent_as_it_is() -> None:
    column = texts(["a"])
    assert isinstance(column, Column)
    assert dumped(column)[1] == column
