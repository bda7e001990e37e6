"""The order of a run's partitions: that of their items, whatever their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

R = TypeVar("R")


def in_order(partitions: Iterable[R], *, place: Callable[[R], tuple[int, int | None]]) -> list[R]:
    """
    Order partitions by their items; *place* gives the number of one, and of the one that it was cut from.

    What is cut from a partition is the end of its range, so it comes behind that. Of several such ends the one that was
    cut last comes first, and it has the highest number.
    """
    found = {place(each)[0]: each for each in partitions}
    cut_from: dict[int | None, list[int]] = defaultdict(list)
    for number, each in found.items():
        cut_from[place(each)[1]].append(number)
    ordered: list[R] = []
    # The next one is at the end.
    left = sorted(cut_from[None], reverse=True)
    while left:
        number = left.pop()
        ordered.append(found[number])
        left.extend(sorted(cut_from[number]))
    return ordered
