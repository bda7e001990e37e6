"""Halving finds each item that fails in few tries, and no others."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from batchkit.narrowing import Narrowing
from batchkit.sizing import FixedSizing


def _work(items: int, bad: set[int], narrowing: Narrowing) -> tuple[list[int], list[int], int]:
    """Work items as a slice does; give those that were committed, those found to fail, and how many tries failed."""
    committed: list[int] = []
    found: list[int] = []
    refused = position = 0
    while position < items:
        chunk = list(range(position, min(items, position + narrowing.limit)))
        if not bad & set(chunk):
            committed += chunk
            position += len(chunk)
            narrowing.committed(len(chunk), 1.0)
            continue
        refused += 1
        if narrowing.failed(len(chunk)):
            found += chunk
            position += 1
            narrowing.passed()
    return committed, found, refused


@settings(max_examples=300)
@given(data=st.data(), items=st.integers(1, 700), size=st.integers(1, 256))
def test_the_items_that_fail_are_found_and_no_others(data: st.DataObject, items: int, size: int):
    bad = data.draw(st.sets(st.integers(0, items - 1), max_size=20))
    committed, found, refused = _work(items, bad, Narrowing(FixedSizing(size)))
    assert [item for item in range(items) if item not in bad] == committed
    assert sorted(bad) == found
    assert refused <= len(bad) * (1 + math.ceil(math.log2(size)) if size > 1 else 1)


def test_one_of_five_hundred_is_found_in_nine_halvings():
    narrowing = Narrowing(FixedSizing(500))
    tries = 0
    position = 0
    while True:
        tries += 1
        if position <= 333 < position + narrowing.limit:
            limit = narrowing.limit
            if narrowing.failed(limit):
                break
        else:
            position += narrowing.limit
            narrowing.committed(narrowing.limit, 1.0)
    assert tries <= 2 * math.ceil(math.log2(500))
    narrowing.passed()
    assert 500 == narrowing.limit


def test_where_none_fails_alone_the_size_comes_back_by_and_by():
    narrowing = Narrowing(FixedSizing(100))
    assert not narrowing.failed(100)
    while narrowing.is_searching:
        narrowing.committed(narrowing.limit, 1.0)
    sizes = []
    for _ in range(3):
        sizes.append(narrowing.limit)
        narrowing.committed(narrowing.limit, 1.0)
    assert [50, 100, 100] == sizes
