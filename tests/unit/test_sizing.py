"""Chunk sizes that follow what the items cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit import Adaptive
from batchkit.errors import InvalidJob
from batchkit.sizing import AdaptiveSizing, FixedSizing
from benchmarks import sizes

_OVERHEAD = 0.002


def _sizing(*, target: float = 1.0, longest: float = 10.0, first: int | None = None, **bounds: int) -> AdaptiveSizing:
    return AdaptiveSizing(Adaptive(target=target, **bounds), longest=longest, first=first)


def _work(sizing: AdaptiveSizing, cost: float, *, chunks: int) -> list[float]:
    """Work chunks of items that cost so many seconds each; give how long each took."""
    took = []
    for _ in range(chunks):
        items = sizing.size
        took.append(_OVERHEAD + items * cost)
        sizing.took(items, took[-1])
    return took


@pytest.mark.parametrize(("cost", "chunks"), [(0.00011, 7), (0.001, 6), (0.01, 5), (0.1, 2), (1.0, 2)])
def test_the_target_is_reached_within_a_few_chunks_from_nothing(cost: float, chunks: int):
    took = _work(_sizing(), cost, chunks=20)
    assert all(0.8 <= each <= 1.1 for each in took[chunks:])


def test_an_item_that_costs_more_than_the_target_goes_alone():
    sizing = _sizing()
    _work(sizing, 5.0, chunks=1)
    assert 1 == sizing.size


@given(st.lists(st.floats(min_value=1e-5, max_value=0.5), min_size=1, max_size=30))
def test_after_a_chunk_that_took_too_long_the_next_would_not_have(costs: list[float]):
    sizing = _sizing()
    for cost in costs:
        items = sizing.size
        took = _OVERHEAD + items * cost
        sizing.took(items, took)
        # Had the next chunk items as dear as the last.
        assert sizing.size == 1 or sizing.size * cost <= 1.0 + 1e-9
        assert sizing.size <= 8 * items


def test_a_hundredfold_rise_makes_one_chunk_too_long_and_a_fall_is_followed_in_a_few():
    sizing = _sizing()
    _work(sizing, 0.001, chunks=10)
    after = _work(sizing, 0.1, chunks=5)
    assert 1 == sum(each > 1.5 for each in after)
    again = _work(sizing, 0.001, chunks=20)
    assert all(0.8 <= each <= 1.1 for each in again[12:])


def test_no_chunk_is_planned_to_outlive_what_is_longest():
    took = _work(_sizing(target=60, longest=2.0), 0.01, chunks=30)
    assert 2.1 >= max(took)
    assert 1.9 <= took[-1]


def test_bounds_hold():
    small = _sizing(maximum=50)
    assert 1.0 > max(_work(small, 0.00001, chunks=20))
    assert 50 == small.size
    large = _sizing(minimum=20)
    _work(large, 1.0, chunks=3)
    assert 20 == large.size
    large.shrink(3)
    assert 20 == large.size


def test_a_slice_begins_with_the_size_that_the_last_one_had():
    assert 700 == _sizing(first=700).size
    assert 10_000 == _sizing(first=1_000_000).size


def test_a_fixed_size_comes_back_after_it_was_shrunk():
    sizing = FixedSizing(100)
    sizing.shrink(12)
    sizes = []
    for _ in range(5):
        sizes.append(sizing.size)
        sizing.took(sizing.size, 1.0)
    assert [12, 24, 48, 96, 100] == sizes


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 0},
        {"target": timedelta(seconds=-1)},
        {"target": "1 s"},
        {"minimum": 0},
        {"maximum": 1.5},
        {"minimum": 10, "maximum": 5},
        {"minimum": True},
    ],
)
def test_what_is_no_adaptive_size_is_refused(wrong: dict[str, Any]):
    with pytest.raises(InvalidJob, match="Adaptive: "):
        Adaptive(**wrong)


@pytest.mark.parametrize("curve", list(sizes.CURVES))
def test_it_is_sooner_at_its_target_than_the_published_rule_and_no_oftener_too_long(curve: str):
    ours, published, fixed = (
        sizes.simulate(sizes.RULES[rule](), sizes.CURVES[curve]) for rule in ("Adaptive()", "GitLab's", "fixed, 500")
    )
    assert ours.reached_after is not None
    assert published.reached_after is not None
    assert ours.reached_after <= published.reached_after
    assert ours.overruns <= min(published.overruns, fixed.overruns)


def test_the_picture_is_that_of_this_rule():
    assert sizes.PICTURE.read_text() == sizes.draw(), "draw it again: python -m benchmarks.sizes"
