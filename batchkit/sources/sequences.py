"""Items that are there already: sequences and spans of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from batchkit.errors import InvalidSource
from batchkit.sources.base import Source

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

T = TypeVar("T")


def items(sequence: Sequence[T]) -> Source[T]:
    """
    Take the items of a sequence, such as a list.

    The source function is called again for each slice, so it must give the same items in the same order: a run whose
    sequence has another length is not gone on with.

    Raises:
        InvalidSource: it is not a sequence.
    """
    if isinstance(sequence, str | bytes) or not isinstance(sequence, Sequence):
        raise InvalidSource(
            f"items() takes a sequence with an order and a length: got {type(sequence).__name__}; "
            f"give list(...) of it, sorted(...) if it has no order"
        )
    return _Items(sequence, kind="items", end=len(sequence))


def span(start: int, stop: int | None = None, step: int = 1) -> Source[int]:
    """
    Take the numbers of a range, however many: `span(10)` as `range(10)`, `span(5, 50, 5)` as `range(5, 50, 5)`.

    Raises:
        InvalidSource: a bound is no whole number, or the step is 0.
    """
    bounds = (0, start, step) if stop is None else (start, stop, step)
    if not all(type(bound) is int for bound in bounds) or step == 0:
        raise InvalidSource(f"span() takes whole numbers and a step that is not 0: got {(start, stop, step)!r}")
    numbers = range(*bounds)
    # len() of a range fails beyond sys.maxsize.
    end = max(0, -(-(numbers.stop - numbers.start) // numbers.step))
    return _Items(numbers, kind="span", end=end, key=[numbers.start, numbers.step])


class _Items(Generic[T]):
    """Items by index; the cursor is the index of the last one."""

    def __init__(self, sequence: Sequence[T], *, kind: str, end: int, key: list[Json] | None = None) -> None:
        self._sequence = sequence
        self._kind = kind
        self._end = end
        self._length = end
        self._begin = 0
        self._key = key

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[T, int]]:  # noqa: ARG002
        """Give the items behind the index *after*."""
        first = self._begin if after is None else after + 1
        last = min(first + limit, self._end)
        return [(self._sequence[index], index) for index in range(first, last)]

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Give the number of items."""
        return max(0, self._end - self._begin)

    def weigh(self, session: Session) -> int:
        """Give the number of items."""
        return self.count(session)

    def upper(self, session: Session) -> int | None:  # noqa: ARG002
        """Give the index of the last item."""
        return self._end - 1 if self._end else None

    def until(self, upper: int) -> Source[T]:
        """Give the same items without those behind the index *upper*."""
        return self._part(begin=self._begin, end=min(self._end, upper + 1))

    def split(self, parts: int, session: Session) -> list[int]:  # noqa: ARG002
        """Cut it where each range has as many items as the others, or one more."""
        length = max(0, self._end - self._begin)
        ranges = min(parts, length)
        return [self._begin + length * number // ranges - 1 for number in range(1, ranges)]

    def behind(self, after: int) -> Source[T]:
        """Give the same items without those up to the index *after*."""
        if type(after) is not int or after < 0:
            raise InvalidSource(f"{after!r} is not a cursor of {self._kind}(): that is an index, 0 for the first item")
        return self._part(begin=after + 1, end=self._end)

    def identity(self) -> dict[str, Json]:
        """Describe what an index stands for."""
        return {"kind": self._kind} if self._key is None else {"kind": self._kind, "start and step": self._key}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content by its length."""
        return {"length": self._length}

    def _part(self, *, begin: int, end: int) -> Source[T]:
        part = _Items(self._sequence, kind=self._kind, end=end, key=self._key)
        part._begin, part._length = begin, self._length
        return part
