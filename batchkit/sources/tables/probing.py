"""Places that are spread evenly over things on a line, found by looking from some of its places."""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: How many things a look gives.
_LOOK = 16
#: Of so many looks, every other one is spent on the widest stretch: what is dense may lie in the middle of it.
_WIDE_LOOKS = 128
#: How many bits a line has whose length is taken for usual.
_LONG_LINE_BITS = 64

Look = Callable[[int, int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The line from `begin` up to and without `end`, the first things on it, and how many there are, as these say."""

    begin: int
    end: int
    found: tuple[int, ...]
    weight: float

    @property
    def is_known(self) -> bool:
        return _is_known(self.begin, self.end, self.found)

    @property
    def width(self) -> int:
        return self.end - self.begin

    def place(self, offset: float) -> int:
        """Give the place of the thing with so many before it."""
        if offset < len(self.found):
            return self.found[int(offset)]
        return self.begin + min(self.width - 1, int(self.width * (offset / self.weight)))


#: A stretch with what it comes first by; where it begins keeps two from being compared.
_Ranked = tuple[float, int, _Stretch]


def spread(first: int, last: int, *, look: Look, wanted: int, wide_looks: int = _WIDE_LOOKS) -> list[int]:
    """
    Give *wanted* places from *first* to *last* with about as many things between each two, in order.

    *look* gives, from a place on, so many of the places where things are; it is asked so many times as follows from
    *wanted*, whatever lies there. Where things are crowded on a small part of the line, that is looked at more closely;
    a crowd is missed where it takes less than a hundredth of the line and lies neither at its end nor behind a place
    that was looked at; with fewer *wide_looks*, a larger one is.
    """
    if first > last:
        # These are in another order than what is looked at, and so nothing is known of what lies between.
        return []
    stretches = _halved(_towards_end(first, last + 1, look), look=look, wanted=wanted, wide_looks=wide_looks)
    passed = list(itertools.accumulate(stretch.weight for stretch in stretches))
    total = passed[-1]
    places: list[int] = []
    for number in range(wanted):
        target = (number + 0.5) * total / wanted
        at = min(bisect.bisect_right(passed, target), len(stretches) - 1)
        before = passed[at - 1] if at else 0.0
        places.append(stretches[at].place(max(0.0, target - before)))
    return sorted(set(places))


def _towards_end(begin: int, end: int, look: Look) -> list[_Stretch]:
    """Cut a line into ever shorter stretches, since what is new is often crowded at its end."""
    step = 1 + (end - begin).bit_length() // _LONG_LINE_BITS
    lengths = range(((end - begin).bit_length() - 1) // step * step, 0, -step)
    bounds = sorted({begin, *(end - (1 << length) for length in lengths), end})
    return [_stretch(each, after, look) for each, after in itertools.pairwise(bounds) if each >= begin]


def _halved(stretches: list[_Stretch], *, look: Look, wanted: int, wide_looks: int) -> list[_Stretch]:
    """Halve the heaviest stretch over and over, and at first the widest by turns; give all in their order."""
    whole = {stretch.begin: stretch for stretch in stretches}
    unknown = [stretch for stretch in stretches if not stretch.is_known]
    by_weight: list[_Ranked] = [(-stretch.weight, stretch.begin, stretch) for stretch in unknown]
    by_width: list[_Ranked] = [(-float(stretch.width), stretch.begin, stretch) for stretch in unknown]
    heapq.heapify(by_weight)
    heapq.heapify(by_width)
    total = sum(stretch.weight for stretch in stretches)
    for number in range(wide_looks + wanted):
        is_wide = number < wide_looks and number % 2 == 1
        chosen = _next(by_width if is_wide else by_weight, whole)
        if chosen is None or (number >= wide_looks and chosen.weight < total / wanted):
            break
        middle = max(chosen.begin + 1, (min(chosen.found[-1], chosen.end - 2) + 1 + chosen.end) // 2)
        left = _weighed(chosen.begin, middle, tuple(place for place in chosen.found if place < middle))
        right = _stretch(middle, chosen.end, look)
        total += left.weight + right.weight - chosen.weight
        for half in (left, right):
            whole[half.begin] = half
            if not half.is_known:
                heapq.heappush(by_weight, (-half.weight, half.begin, half))
                heapq.heappush(by_width, (-float(half.width), half.begin, half))
    return [whole[begin] for begin in sorted(whole)]


def _next(heap: list[_Ranked], whole: dict[int, _Stretch]) -> _Stretch | None:
    """Take the first that was not halved since."""
    while heap:
        *_, stretch = heapq.heappop(heap)
        if whole.get(stretch.begin) is stretch:
            return stretch
    return None


def _stretch(begin: int, end: int, look: Look) -> _Stretch:
    found = tuple(place for place in look(begin, _LOOK) if place < end)
    # In front of the first there is nothing, which says nothing of what comes behind it.
    return _weighed(found[0] if found else begin, end, found)


def _is_known(begin: int, end: int, found: tuple[int, ...]) -> bool:
    return len(found) < _LOOK or end - begin <= 1


def _weighed(begin: int, end: int, found: tuple[int, ...]) -> _Stretch:
    if _is_known(begin, end, found):
        return _Stretch(begin, end, found, float(len(found)))
    gaps = [after - before for before, after in itertools.pairwise(found)]
    widest = max(gaps)
    # Behind a gap that is wider than all the rest, another crowd may begin: those in front of it say nothing of that.
    first = gaps.index(widest) + 1 if 2 * widest > sum(gaps) and gaps[-1] != widest else 0
    density = (len(found) - first) / (found[-1] - found[first] + 1)
    return _Stretch(begin, end, found, max(float(len(found)), first + density * (end - found[first])))
