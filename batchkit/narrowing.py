"""Finding the one item of a chunk that fails, by halving."""

from __future__ import annotations

from batchkit.sizing import Sizing


class Narrowing:
    """
    Says how many items the next chunk takes: the full size, or fewer while one that fails is looked for.

    Of n items that failed together the first half is tried. Where that commits, the failing item is among the others,
    which need not be tried together to know it. So about log2(n) tries find it, half of which commit their items, and
    then the size comes back at once.
    """

    def __init__(self, sizing: Sizing) -> None:
        self._sizing = sizing
        #: how many of the items to come are known to hold one that fails
        self._suspects = 0
        #: how many failed together when the search began
        self._searched = 0
        #: how many items the next chunk takes, where that is known; 0 where it is not
        self._exactly = 0

    @property
    def limit(self) -> int:
        """How many items the next chunk takes at most."""
        if self._exactly:
            return self._exactly
        return max(1, self._suspects // 2) if self._suspects else self._sizing.size

    @property
    def is_searching(self) -> bool:
        """Whether an item that fails is being looked for."""
        return self._suspects > 0

    def take(self, items: int) -> None:
        """Let the next chunk take just so many: the one behind them fails."""
        self._exactly = items

    def failed(self, items: int) -> bool:
        """Take note that a chunk of *items* failed, and tell whether that is the one item that fails."""
        self._exactly = 0
        if not self._suspects:
            self._searched = items
        self._suspects = items
        return items == 1

    def committed(self, items: int, seconds: float) -> None:
        """Take note that a chunk of *items* was committed after *seconds*."""
        was_told, self._exactly = bool(self._exactly), 0
        if not self._suspects:
            if not was_told:
                self._sizing.took(items, seconds)
            return
        self._suspects = max(0, self._suspects - items)
        if not self._suspects:
            # Each item went through by itself: together they were too much, or the fault has passed.
            self._sizing.shrink(self._searched // 2)

    def passed(self) -> None:
        """Take note that the item that fails is behind."""
        self._suspects = 0
