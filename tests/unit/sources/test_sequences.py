"""Sequences and spans by index."""

from __future__ import annotations

import sys
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import items, span
from batchkit.errors import InvalidSource

NO_SESSION = cast("Session", None)


def _walk(source: Any, *, limit: int) -> list[Any]:
    found: list[Any] = []
    after = None
    while read := source.read(after, limit, NO_SESSION):
        found += [item for item, _ in read]
        after = read[-1][1]
    return found


@given(st.lists(st.integers()), st.integers(1, 10))
def test_items_are_those_of_the_sequence(values: list[int], limit: int):
    source: Any = items(values)
    assert values == _walk(source, limit=limit)
    assert len(values) == source.count(NO_SESSION)
    assert ({"length": len(values)}) == source.fingerprint()


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-5, 5).filter(bool), st.integers(1, 20))
def test_a_span_is_the_range_of_the_same_bounds(start: int, stop: int, step: int, limit: int):
    assert list(range(start, stop, step)) == _walk(span(start, stop, step), limit=limit)


def test_a_span_of_one_bound_begins_at_nothing():
    assert [0, 1, 2] == _walk(span(3), limit=2)


def test_a_huge_span_takes_no_time():
    source: Any = span(0, sys.maxsize * 10)
    assert sys.maxsize * 10 == source.count(NO_SESSION)
    assert [(12, 12), (13, 13)] == source.read(11, 2, NO_SESSION)


def test_until_is_included_and_keeps_the_fingerprint():
    source: Any = items(["abcde"] * 5)
    assert 3 == len(_walk(source.until(2), limit=2))
    assert source.fingerprint() == source.until(2).fingerprint()
    assert source.upper(NO_SESSION) == 4
    assert items([]).upper(NO_SESSION) is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [{1, 2}, iter([1]), "text", b"bytes", {"a": 1}, 5, None])
def test_what_has_no_order_is_refused(value: Any):
    with pytest.raises(InvalidSource, match="list"):
        items(value)


@pytest.mark.parametrize("bounds", [(0, 10, 0), (0.5, 10), ("a",), (True, 5)])
def test_bounds_that_are_no_whole_numbers_are_refused(bounds: Any):
    with pytest.raises(InvalidSource, match="whole numbers"):
        span(*bounds)
