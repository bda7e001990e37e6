"""Any iterable by count: each item once, though each slice begins it anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import stream
from batchkit.errors import InvalidSource
from batchkit.sources import Continued, streaming

NO_SESSION = cast("Session", None)


class Made:
    """Makes iterators, and counts them and what they gave."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.iterators = 0
        self.given = 0

    def __call__(self) -> Iterator[dict[str, int]]:
        self.iterators += 1
        for number in range(self.length):
            self.given += 1
            yield {"n": number}


def _numbers(source: Any, after: int | None, limit: int) -> list[int]:
    return [item["n"] for item, _ in source.read(after, limit, NO_SESSION)]


@given(length=st.integers(0, 30), limit=st.integers(1, 7), is_one_slice=st.booleans())
def test_each_item_comes_once_in_one_slice_and_in_many(length: int, limit: int, *, is_one_slice: bool):
    made = Made(length)
    one = stream(made)
    found: list[int] = []
    after = None
    while True:
        source: Any = one if is_one_slice else stream(made)
        source.prefetch(after, limit)
        read = source.read(after, limit, NO_SESSION)
        if not read:
            break
        found += [item["n"] for item, _ in read]
        after = read[-1][1]
        assert len(found) == after
    assert list(range(length)) == found
    if is_one_slice:
        assert (1, length) == (made.iterators, made.given)


def test_what_was_done_is_skipped_once_a_slice_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    made = Made(100)
    source = stream(made)
    with caplog.at_level(logging.INFO, logger="batchkit"):
        assert [60, 61] == _numbers(source, 60, 2)
        assert [62, 63] == _numbers(source, 62, 2)
    assert 1 == caplog.text.count("is skipped")
    assert 1 == made.iterators


def test_a_stream_that_ends_before_the_cursor_is_an_error():
    with pytest.raises(InvalidSource, match="has 10 items now, but 20 of its items were done"):
        stream(Made(10)).read(20, 5, NO_SESSION)


def test_a_stream_that_ends_at_the_cursor_has_ended():
    assert [] == _numbers(stream(Made(10)), 10, 5)


def test_a_failed_try_is_given_its_items_again_as_they_were():
    made = Made(100)
    source = stream(made)
    for item, _ in source.read(None, 8, NO_SESSION):
        item["n"] = -1
    assert [0, 1, 2, 3] == _numbers(source, None, 4)
    assert [4, 5] == _numbers(source, 4, 2)
    assert [6, 7] == _numbers(source, 6, 9)
    assert [8, 9] == _numbers(source, 8, 2)
    assert 1 == made.iterators


def test_items_that_cannot_be_copied_come_from_a_new_iterator_in_another_try():
    def make() -> Iterator[Any]:
        for number in range(6):
            yield {"n": number, "lock": threading.Lock()}

    source = stream(make)
    for item, _ in source.read(None, 4, NO_SESSION):
        item["n"] = -1
    assert [0, 1] == _numbers(source, None, 2)
    assert [2, 3] == _numbers(source, 2, 2)
    assert [4, 5] == _numbers(source, 4, 9)


def test_an_iterator_that_raises_is_not_taken_for_one_that_has_ended():
    failing = [True]

    def make() -> Iterator[dict[str, int]]:
        for number in range(6):
            if number == 3 and failing[0]:
                raise ConnectionError
            yield {"n": number}

    source = stream(make)
    with pytest.raises(ConnectionError):
        source.read(None, 5, NO_SESSION)
    failing[0] = False
    assert [0, 1, 2, 3, 4] == _numbers(source, None, 5)


def test_items_that_come_slowly_make_a_smaller_chunk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "_WAITED_SECONDS", -1.0)
    source = stream(Made(5))
    assert [0] == _numbers(source, None, 5)
    assert [1] == _numbers(source, 1, 5)


@pytest.mark.parametrize("given", [[1, 2], iter([1]), None])
def test_what_is_no_function_is_refused(given: Any):
    with pytest.raises(InvalidSource, match=r"stream\(lambda"):
        stream(given)


def test_a_function_that_gives_no_iterable_is_refused():
    with pytest.raises(InvalidSource, match="this one gave int"):
        stream(cast("Any", lambda: 5)).read(None, 1, NO_SESSION)


@pytest.mark.parametrize("after", ["3", -1, True, 1.5])
def test_what_is_no_count_is_refused(after: Any):
    source = stream(Made(3))
    assert isinstance(source, Continued)
    with pytest.raises(InvalidSource, match=r"is not a cursor of stream\(\)"):
        source.behind(after)


def test_a_beginning_is_left_out():
    source: Any = stream(Made(5))
    assert [3, 4] == _numbers(source.behind(3).anew(), None, 9)
