"""Items in memory that are handed to a function which may change them and then fail."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """
    Items that are given again as they were: a chunk that failed is tried once more, whole or in parts.

    What is given are copies. An item that cannot be copied is given itself, and only once.
    """

    def __init__(self, items: Sequence[T]) -> None:
        self._items = list(items)
        self._spent = 0

    def __len__(self) -> int:
        return len(self._items)

    def has(self, begin: int) -> bool:
        """Whether those from *begin* on can still be given as they were."""
        return begin >= self._spent

    def give(self, begin: int, end: int) -> list[T]:
        """Give those from *begin* to *end*, which `has` must have said are there."""
        items = self._items[begin:end]
        try:
            return copy.deepcopy(items)
        except Exception:  # noqa: BLE001  whatever an object of the user's raises when it is copied
            self._spent = begin + len(items)
            return items
