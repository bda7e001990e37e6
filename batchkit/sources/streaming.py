"""Items of any iterable, counted."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from batchkit.errors import InvalidSource
from batchkit.sources.base import Source
from batchkit.sources.keeping import Kept

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

T = TypeVar("T")

_logger = logging.getLogger("batchkit")

#: A chunk waits so long for more items, and then takes those that came.
_WAITED_SECONDS = 1.0


def stream(make_iterator: Callable[[], Iterable[T]]) -> Source[T]:
    """
    Take the items of any iterable, such as a generator; the cursor is how many there were.

    There is no way into the middle: each slice calls *make_iterator* and skips what was done, which takes time, and the
    log says so. It must give the same items in the same order each time.

    Raises:
        InvalidSource: it is no function that gives an iterable. In a run: there are fewer items now than were done.
    """
    if not callable(make_iterator):
        raise InvalidSource(
            f"stream() takes a function that gives an iterable, since each slice begins anew: got "
            f"{type(make_iterator).__name__}; write stream(lambda: ...)"
        )
    return _Stream(make_iterator)


class _Stream(Generic[T]):
    def __init__(self, make_iterator: Callable[[], Iterable[T]], *, begin: int = 0) -> None:
        self._make_iterator = make_iterator
        self._begin = begin
        self._iterator: Iterator[T] | None = None
        self._kept: Kept[T] = Kept([])
        #: how many items come before those that are kept
        self._before = 0

    def prefetch(self, after: int | None, limit: int) -> None:
        """Take the next items from the iterator."""
        self._fill(self._checked(after), limit)

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[T, int]]:  # noqa: ARG002
        """Give the items behind the first *after* ones."""
        done = self._checked(after)
        self._fill(done, limit)
        begin = done - self._before
        return list(zip(self._kept.give(begin, begin + limit), itertools.count(done + 1)))

    def behind(self, after: int) -> Source[T]:
        """Give the same items without the first *after* ones."""
        return _Stream(self._make_iterator, begin=self._checked(after))

    def anew(self) -> Source[T]:
        """Give the same source without its iterator."""
        return _Stream(self._make_iterator, begin=self._begin)

    def identity(self) -> dict[str, Json]:
        """Say that cursors are counts."""
        return {"kind": "stream"}

    def _checked(self, after: object) -> int:
        if after is None:
            return self._begin
        if type(after) is not int or after < 0:
            raise InvalidSource(f"{after!r} is not a cursor of stream(): that is the number of items up to there")
        return after

    def _fill(self, done: int, limit: int) -> None:
        """Have the items behind the first *done* ones at hand, one of them at least if there is one."""
        begin = done - self._before
        if self._iterator is None or not 0 <= begin <= len(self._kept) or not self._kept.has(begin):
            self._iterator = self._skipping(done)
        elif begin < len(self._kept):
            return
        try:
            self._kept, self._before = Kept(_taken(self._iterator, limit)), done
        except BaseException:
            # A generator that has raised has ended, and would pass for one whose items are all done.
            self._iterator = None
            raise

    def _skipping(self, done: int) -> Iterator[T]:
        self._iterator = None
        iterable: object = self._make_iterator()
        if not isinstance(iterable, Iterable):
            raise InvalidSource(
                f"stream() takes a function that gives an iterable, and this one gave {type(iterable).__name__}"
            )
        iterator: Iterator[T] = iter(iterable)
        if done:
            _logger.info("a stream has no way into the middle, so what was done is skipped", extra={"items": done})
            skipped = sum(1 for _ in itertools.islice(iterator, done))
            if skipped < done:
                raise InvalidSource(
                    f"the stream has {skipped} items now, but {done} of its items were done; it must give the same "
                    f"items in the same order each time. Mend that and resume the run, or start a new one"
                )
        return iterator


def _taken(iterator: Iterator[T], limit: int) -> list[T]:
    """Take at most *limit* items; fewer where they come slowly, so that a chunk is not late for its lease."""
    enough_at = time.monotonic() + _WAITED_SECONDS
    taken: list[T] = []
    for item in itertools.islice(iterator, limit):
        taken.append(item)
        if time.monotonic() > enough_at:
            break
    return taken
