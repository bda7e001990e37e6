"""Pages by token: each item once, whatever the size of pages and chunks, and no changed page passes unnoticed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import pages
from batchkit.errors import InvalidSource, NotSerializable
from batchkit.planning import Cursors
from batchkit.sources import Continued, Prefetching, Stateful
from tests.waiting import eventually

NO_SESSION = cast("Session", None)


class Api:
    """An API that counts how often each page was fetched."""

    def __init__(self, *sizes: int) -> None:
        numbers = iter(range(sum(sizes)))
        self.pages: list[list[Any]] = [[next(numbers) for _ in range(size)] for size in sizes]
        self.asked: list[Any] = []

    def fetch(self, token: str | None) -> tuple[list[Any], str | None]:
        self.asked.append(token)
        number = 0 if token is None else int(token.removeprefix("page-"))
        is_last = number + 1 >= len(self.pages)
        return list(self.pages[number]), None if is_last else f"page-{number + 1}"


def _walk(make: Callable[[], Any], *, limit: int) -> list[Any]:
    """Read to the end with sources that `make` gives, each cursor stored and read back as a run does."""
    found: list[Any] = []
    stored = None
    while True:
        source = make()
        cursors = Cursors(source)
        source.prefetch(cursors.read(stored), limit)
        read = source.read(cursors.read(stored), limit, NO_SESSION)
        if not read:
            return found
        assert len(read) <= limit
        found += [item for item, _ in read]
        stored = cursors.write(read[-1][1])


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8), limit=st.integers(1, 7), is_one_slice=st.booleans())
def test_each_item_comes_once_in_one_slice_and_in_many(sizes: list[int], limit: int, *, is_one_slice: bool):
    api = Api(*sizes)
    source = pages(api.fetch)
    assert list(range(sum(sizes))) == _walk(lambda: source if is_one_slice else pages(api.fetch), limit=limit)
    if is_one_slice:
        assert len(api.asked) == len(set(api.asked)), "a page was fetched twice in one slice"


def test_a_slice_that_begins_inside_a_page_fetches_that_page_and_goes_on_behind_the_item():
    api = Api(3, 3, 3)
    source: Any = pages(api.fetch)
    assert [(4, ["page-1", 1]), (5, ["page-1", 2])] == source.read(["page-1", 0], 5, NO_SESSION)
    assert ["page-1"] == api.asked
    assert [(6, ["page-2", 0])] == source.read(["page-1", 2], 1, NO_SESSION)
    assert ["page-1", "page-2"] == api.asked


def test_what_was_prefetched_is_read_without_a_fetch():
    api = Api(3, 0, 2)
    source = pages(api.fetch)
    assert isinstance(source, Prefetching)
    source.prefetch([None, 2], 10)
    asked = list(api.asked)
    assert [3, 4] == [item for item, _ in source.read([None, 2], 10, NO_SESSION)]
    assert asked == api.asked == [None, "page-1", "page-2"]


def test_items_that_a_failed_try_has_changed_are_given_as_they_were():
    source = pages(lambda _: ([{"cents": 5}, {"cents": 7}], None))
    for item, _ in source.read(None, 2, NO_SESSION):
        item["cents"] *= 100
    assert [{"cents": 5}] == [item for item, _ in source.read(None, 1, NO_SESSION)]
    assert [{"cents": 7}] == [item for item, _ in source.read([None, 0], 1, NO_SESSION)]


def test_items_that_cannot_be_copied_are_fetched_again_for_another_try():
    asked: list[Any] = []

    def fetch(token: str | None) -> tuple[list[Any], str | None]:
        asked.append(token)
        return [{"lock": threading.Lock(), "cents": cents} for cents in (5, 7)], None

    source = pages(fetch)
    for item, _ in source.read(None, 2, NO_SESSION):
        item["cents"] *= 100
    assert [5, 7] == [item["cents"] for item, _ in source.read(None, 2, NO_SESSION)]
    assert [None, None] == asked
    assert [] == list(source.read([None, 1], 2, NO_SESSION))
    assert [None, None] == asked, "nothing is left of the page, so nothing of it was asked for again"


def test_a_page_that_became_shorter_is_an_error_and_not_a_skip():
    api = Api(5, 5)
    stored = list(pages(api.fetch).read(None, 4, NO_SESSION))[-1][1]
    api.pages[0] = api.pages[0][2:]
    with pytest.raises(InvalidSource, match=r"page with the token None had more than 3 items .* has 3 now"):
        pages(api.fetch).read(stored, 4, NO_SESSION)


def test_a_page_that_became_longer_goes_on_with_what_was_added():
    api = Api(3)
    api.pages[0].append("new")
    assert ["new"] == [item for item, _ in pages(api.fetch).read([None, 2], 4, NO_SESSION)]


@pytest.mark.parametrize(
    ("following", "again"),
    [({None: "a", "a": "a"}, "'a'"), ({None: "a", "a": "b", "b": "a"}, "'a'"), ({None: 1, 1: 2, 2: 3, 3: 1}, "1")],
)
@pytest.mark.parametrize("page", [[], [1]])
def test_a_token_that_comes_again_is_refused(following: dict[Any, Any], again: str, page: list[int]):
    source = pages(lambda token: (page, following[token]))
    with pytest.raises(InvalidSource, match=f"gave {again} as the token of the next page, which it was called with"):
        _walk(lambda: source, limit=1)


def test_an_empty_text_as_the_next_token_is_refused_since_it_would_begin_anew():
    with pytest.raises(InvalidSource, match="return items, token or None"):
        pages(lambda _: ([1], "")).read(None, 1, NO_SESSION)


@pytest.mark.parametrize("given", [[1, 2], None, ([1], None, 3)])
def test_what_is_no_page_is_refused_with_the_right_form(given: Any):
    with pytest.raises(InvalidSource, match="return items, token"):
        pages(lambda _: given).read(None, 1, NO_SESSION)


def test_a_token_that_cannot_be_stored_is_found_at_the_first_page():
    with pytest.raises(NotSerializable, match="the token of a page"):
        pages(lambda _: ([1], object())).read(None, 1, NO_SESSION)


def test_many_empty_pages_are_told(caplog: pytest.LogCaptureFixture):
    api = Api(*[0] * 250, 1)
    with caplog.at_level(logging.WARNING, logger="batchkit"):
        assert [0] == _walk(lambda: pages(api.fetch), limit=1)
    assert "one empty page after the other" in caplog.text


def test_a_fetch_that_raises_loses_nothing():
    api = Api(2, 0, 2)
    broken = [True]

    def fetch(token: str | None) -> tuple[list[Any], str | None]:
        if token == "page-2" and broken[0]:  # noqa: S105  a page's
            raise ConnectionError
        return api.fetch(token)

    source = pages(fetch)
    with pytest.raises(ConnectionError):
        source.read([None, 1], 5, NO_SESSION)
    broken[0] = False
    assert [2, 3] == [item for item, _ in source.read([None, 1], 5, NO_SESSION)]


class SlowApi(Api):
    """An API that answers when it is told to, and knows who asked."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.may_answer = threading.Semaphore(0)
        self.asked_by: list[str] = []
        self.said: list[str] = []

    def fetch(self, token: str | None) -> tuple[list[Any], str | None]:
        self.asked_by.append(threading.current_thread().name)
        self.said.append(_said.get())
        assert self.may_answer.acquire(timeout=30)
        return super().fetch(token)


_said: ContextVar[str] = ContextVar("_said", default="nothing")


def test_the_next_page_is_fetched_while_the_items_of_this_one_are_worked():
    api = SlowApi(2, 2, 2)
    source: Any = pages(api.fetch, ahead=True)
    api.may_answer.release()
    _said.set("what the slice says")
    source.prefetch(None, 1)
    eventually(lambda: len(api.asked_by) == 2, message="the next page is not asked for")
    # The job is at work on these meanwhile; nothing more is asked for.
    assert [0, 1] == [item for after in (None, [None, 0]) for item, _ in source.read(after, 1, NO_SESSION)]
    source.prefetch([None, 0], 1)
    assert 2 == len(api.asked_by)
    api.may_answer.release(2)
    source.prefetch([None, 1], 1)
    assert [2] == [item for item, _ in source.read([None, 1], 1, NO_SESSION)]
    eventually(lambda: len(api.asked) == 3)
    assert [None, "page-1", "page-2"] == api.asked
    assert [threading.current_thread().name, "batchkit-fetch", "batchkit-fetch"] == api.asked_by
    assert {"what the slice says"} == set(api.said)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8), limit=st.integers(1, 7))
def test_pages_that_are_fetched_ahead_are_the_same_and_each_is_fetched_once(sizes: list[int], limit: int):
    api = Api(*sizes)
    source = pages(api.fetch, ahead=True)
    assert list(range(sum(sizes))) == _walk(lambda: source, limit=limit)
    assert len(api.asked) == len(set(api.asked)) == len(sizes)


def test_an_error_of_a_page_that_is_fetched_ahead_comes_where_the_page_is_wanted_and_loses_nothing():
    api = Api(2, 2)
    broken = [True]

    def fetch(token: str | None) -> tuple[list[Any], str | None]:
        if token is not None and broken[0]:
            raise ConnectionError
        return api.fetch(token)

    source: Any = pages(fetch, ahead=True)
    source.prefetch(None, 2)
    assert [0, 1] == [item for item, _ in source.read(None, 2, NO_SESSION)]
    with pytest.raises(ConnectionError):
        source.prefetch([None, 1], 2)
    broken[0] = False
    source.prefetch([None, 1], 2)
    assert [2, 3] == [item for item, _ in source.read([None, 1], 2, NO_SESSION)]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_page_that_is_fetched_again_in_vain_is_fetched_once_more(*, ahead: bool):
    fetched: list[str | None] = []

    def fetch(token: str | None) -> tuple[list[Any], str | None]:
        fetched.append(token)
        if token is None and fetched.count(None) == 2:
            raise ConnectionError
        return [threading.Lock(), threading.Lock()], "page-1" if token is None else None

    source: Any = pages(fetch, ahead=ahead)
    source.prefetch(None, 2)
    assert 2 == len(source.read(None, 2, NO_SESSION)), "given themselves, since there are no copies of them"
    with pytest.raises(ConnectionError):
        source.prefetch(None, 2)
    source.prefetch(None, 2)
    assert 2 == len(source.read(None, 2, NO_SESSION))
    source.prefetch([None, 1], 2)
    assert 2 == len(source.read([None, 1], 2, NO_SESSION))
    assert [None, None, None, "page-1"] == sorted(fetched, key=lambda token: token is not None)


def test_without_a_thread_to_be_had_pages_are_fetched_when_they_are_wanted(monkeypatch: pytest.MonkeyPatch):
    def start(_: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    api = Api(2, 2)
    source = pages(api.fetch, ahead=True)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert [0, 1, 2, 3] == _walk(lambda: source, limit=1)
    assert [None, "page-1"] == api.asked


def test_a_page_that_is_no_page_is_refused_where_it_is_wanted():
    source: Any = pages(lambda token: ([1], "next") if token is None else [1], ahead=True)  # type: ignore[arg-type,return-value]
    source.prefetch(None, 1)
    with pytest.raises(InvalidSource, match="return items, token"):
        source.prefetch([None, 0], 1)


def test_a_source_made_anew_fetches_ahead_as_well():
    api = Api(1, 1, 1)
    source: Any = pages(api.fetch, ahead=True)
    source.behind([None, 0]).anew().prefetch(None, 1)
    eventually(lambda: api.asked == [None, "page-1", "page-2"], message=lambda: f"it asked for {api.asked}")


async def _coroutine(token: str | None) -> Any: ...


@pytest.mark.parametrize("fetch", [_coroutine, [1, 2], None])
def test_what_is_no_plain_function_is_refused(fetch: Any):
    with pytest.raises(InvalidSource, match="plain function"):
        pages(fetch)


@pytest.mark.parametrize("after", [3, "page-1", [None], [None, -1], [None, "1"], [None, True]])
def test_what_is_no_cursor_of_pages_is_refused(after: Any):
    source = pages(Api(3).fetch)
    assert isinstance(source, Continued)
    with pytest.raises(InvalidSource, match=r"is not a cursor of pages\(\)"):
        source.behind(after)


def test_a_beginning_is_left_out_and_a_source_made_anew_keeps_that():
    source: Any = pages(Api(3, 3).fetch)
    behind = source.behind([None, 1])
    assert [3] == [item for item, _ in behind.read([None, 2], 1, NO_SESSION)]
    assert isinstance(behind, Stateful)
    assert [2] == [item for item, _ in behind.anew().read(None, 9, NO_SESSION)]
