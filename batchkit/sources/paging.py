"""Pages of an API that gives a token for the next one."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from batchkit.errors import InvalidSource
from batchkit.sources.base import Source
from batchkit.sources.keeping import Kept
from batchkit.values import dumps

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")

_logger = logging.getLogger("batchkit")

#: How many tokens are looked through for one that comes again.
_REMEMBERED = 10_000
#: After how many empty pages in a row the log says so.
_MANY_EMPTY = 100
_SHOWN = 80


def pages(fetch: Callable[[K | None], tuple[Iterable[T], K | None]], *, ahead: bool = False) -> Source[T]:
    """
    Take the items of an API page after page: `fetch(token)` gives a page's items and the next page's token, or None.

    The first page has the token None. A page is fetched before its chunk's transaction begins, and a chunk takes items
    of one page. A run that goes on in the middle of a page fetches it again, so a token must give the same items each
    time.

    Args:
        fetch: what gives a page.
        ahead: fetch the next page while the items of this one are worked, so that the API's time is not added to
            theirs. `fetch` is then called in a thread of each page's own, beside the job's function, and where a slice
            has just ended in vain beside the `fetch` of the next one.

    Raises:
        InvalidSource: `fetch` is no function. In a run: it gives something else, a token comes again, or a page has
            become shorter than it was when some of its items were done.
    """
    given: object = fetch
    if not callable(given) or inspect.iscoroutinefunction(given):
        raise InvalidSource(f"pages() takes a plain function of a token that gives (items, next token): got {given!r}")
    return _Pages(fetch, is_ahead=ahead)


@dataclass(frozen=True, slots=True)
class _Page(Generic[T]):
    token: Any
    items: Kept[T]
    next: Any


class _Pages(Generic[T]):
    """Items by the token of their page and their index in it."""

    def __init__(self, fetch: Callable[[Any], tuple[Iterable[T], Any]], *, is_ahead: bool, begin: Any = None) -> None:  # noqa: ANN401
        self._fetch = fetch
        self._is_ahead = is_ahead
        self._begin = begin
        #: the token of the page that is being fetched meanwhile, and what comes of it
        self._coming: tuple[Any, Future[tuple[list[T], Any]]] | None = None
        self._page: _Page[T] | None = None
        #: the cursor that was asked for last, and where the first item behind it stands in the page that is kept
        self._asked: tuple[Any, int] | None = None
        #: the tokens that have led to the page that is kept, as JSON text
        self._walked: deque[str] = deque(maxlen=_REMEMBERED)

    def prefetch(self, after: Any, limit: int) -> None:  # noqa: ANN401, ARG002
        """Fetch the page with the first item behind *after*, and begin with the one behind that if it is wanted."""
        page, _ = self._find(after)
        if self._is_ahead and page.next is not None and (self._coming is None or self._coming[0] != page.next):
            coming = _in_thread(lambda: self._fetched(page.next))
            self._coming = None if coming is None else (page.next, coming)

    def read(self, after: Any, limit: int, session: Session) -> list[tuple[T, list[Any]]]:  # noqa: ANN401, ARG002
        """Give the items behind *after*, up to the end of their page."""
        page, begin = self._find(after)
        items = page.items.give(begin, begin + limit)
        return [(item, [page.token, index]) for index, item in enumerate(items, start=begin)]

    def behind(self, after: Any) -> Source[T]:  # noqa: ANN401
        """Give the same items without those up to the one at *after*."""
        _checked(after)
        return _Pages(self._fetch, is_ahead=self._is_ahead, begin=after)

    def anew(self) -> Source[T]:
        """Give the same source without the page that is kept."""
        return _Pages(self._fetch, is_ahead=self._is_ahead, begin=self._begin)

    def identity(self) -> dict[str, Json]:
        """Say that cursors are tokens and indexes."""
        return {"kind": "pages"}

    def _find(self, after: Any) -> tuple[_Page[T], int]:  # noqa: ANN401
        """Give the page with the first item behind *after*, and where it stands there: behind the last, if none is."""
        after = self._begin if after is None else after
        if self._page is not None and self._asked is not None and self._asked[0] == after:
            page, begin = self._page, self._asked[1]
            if not page.items.has(begin):
                page = self._load(page.token)
        else:
            token, index = (None, -1) if after is None else _checked(after)
            page, begin = self._page_of(token, index), index + 1
        empty = 0
        while begin >= len(page.items) and page.next is not None:
            empty = empty + 1 if not len(page.items) else 0
            if empty and empty % _MANY_EMPTY == 0:
                extra = {"pages": empty, "token": page.next}
                _logger.warning("an API gives one empty page after the other", extra=extra)
            page, begin = self._load(page.next), 0
        self._page, self._asked = page, (after, begin)
        return page, begin

    def _page_of(self, token: Any, index: int) -> _Page[T]:  # noqa: ANN401
        page = self._page
        if page is None or page.token != token:
            self._walked.clear()
            page = self._load(token)
        elif not page.items.has(index + 1):
            page = self._load(page.token)
        if index >= len(page.items):
            raise InvalidSource(
                f"the page with the token {_shown(token)} had more than {index} items when some of them were done, and "
                f"has {len(page.items)} now, so nobody can tell which are left; let fetch ask for a listing that does "
                f"not change while it is read, such as one in the order of creation"
            )
        return page

    def _load(self, token: Any) -> _Page[T]:  # noqa: ANN401
        coming = self._coming
        if coming is not None and coming[0] == token:
            self._coming = None
            items, following = coming[1].result()
        else:
            items, following = self._fetched(token)
        walked = dumps(token, where="the token of a page")
        if not self._walked or self._walked[-1] != walked:
            # Else it is the page that is kept, which is fetched again.
            self._walked.append(walked)
        if following is not None and dumps(following, where="the token of a page") in self._walked:
            raise InvalidSource(
                f"fetch({_shown(token)}) gave {_shown(following)} as the token of the next page, which it was called "
                f"with before, so it would go round for ever; return None where there is no next page"
            )
        page = _Page(token, Kept(items), following)
        self._page, self._asked = page, None
        return page

    def _fetched(self, token: Any) -> tuple[list[T], Any]:  # noqa: ANN401
        fetched: object = self._fetch(token)
        if not isinstance(fetched, tuple) or len(fetched) != 2:  # noqa: PLR2004  items and token
            raise InvalidSource(
                f"fetch({_shown(token)}) gave {_shown(fetched)}; return the page's items and the token of the next "
                f"page, or None where there is none: return items, token"
            )
        items, following = fetched
        if isinstance(following, str) and not following:
            raise InvalidSource(
                f"fetch({_shown(token)}) gave an empty text as the token of the next page; return None at the end: "
                f"return items, token or None"
            )
        return list(items), following


def _in_thread(call: Callable[[], R]) -> Future[R] | None:
    """Call it in a thread that keeps no process from ending, in the context of this one; None without a thread."""
    future: Future[R] = Future()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:  # noqa: BLE001  for who waits for it
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="batchkit-fetch", daemon=True).start()
    except RuntimeError:
        # The system has no thread to give, and the page can be fetched when it is wanted.
        return None
    return future


def _checked(after: Any) -> tuple[Any, int]:  # noqa: ANN401
    if isinstance(after, list | tuple) and len(after) == 2:  # noqa: PLR2004  a token and an index
        token, index = after
        if type(index) is int and index >= 0:
            return token, index
    raise InvalidSource(
        f"{after!r} is not a cursor of pages(): that is the token of a page, None for the first, and the index of an "
        f"item in it, such as [None, 0]"
    )


def _shown(value: object) -> str:
    return f"{value!r:.{_SHOWN}}"
