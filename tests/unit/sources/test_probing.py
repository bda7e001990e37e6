"""Places spread over things on a line: about as many things between each two, for a number of looks that is fixed."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit.sources.tables.places import places_of
from batchkit.sources.tables.probing import spread


class Line:
    """Things on a line, and how often somebody looks."""

    def __init__(self, things: Sequence[int]) -> None:
        self.things = sorted(set(things))
        self.looks = 0

    def look(self, place: int, limit: int) -> Sequence[int]:
        self.looks += 1
        at = bisect.bisect_left(self.things, place)
        return self.things[at : at + limit]

    def places(self, wanted: int) -> list[int]:
        return spread(self.things[0], self.things[-1], look=self.look, wanted=wanted)


@given(things=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=200), wanted=st.integers(1, 50))
def test_places_are_on_the_line_in_order(things: list[int], wanted: int):
    line = Line(things)
    places = line.places(wanted)
    assert sorted(set(places)) == places
    assert 1 <= len(places) <= wanted
    assert line.things[0] <= places[0]
    assert places[-1] <= line.things[-1]


@pytest.mark.parametrize("size", [1_000, 100_000])
@pytest.mark.parametrize("shape", ["even", "old", "new", "squares"])
def test_about_as_many_things_lie_between_each_two(size: int, shape: str):
    made = {
        "even": lambda: range(0, size * 7, 7),
        "old": lambda: [*range(size), *range(size, 2**40, 2**40 // (size // 10))],
        "new": lambda: [*range(0, 2**40, 2**40 // (size // 10)), *range(2**40, 2**40 + size)],
        "squares": lambda: [number * number for number in range(size)],
    }
    line = Line(list(made[shape]()))
    places = [bisect.bisect_left(line.things, place) for place in line.places(400)]
    cuts = [0, *(places[len(places) * part // 8] for part in range(1, 8)), len(line.things)]
    assert max(after - before for before, after in itertools.pairwise(cuts)) < 1.6 * len(line.things) / 8
    # Whatever is there.
    assert line.looks < 128 + 400 + 64


@given(texts=st.lists(st.text("abcXYZ 09", max_size=8).map(str.rstrip), min_size=2, max_size=20, unique=True))
def test_texts_are_counted_in_their_order(texts: list[str]):
    places = places_of(texts, uuids_by_node=False)
    assert places is not None
    ordered = sorted(texts)
    assert sorted(map(places.of, texts)) == [places.of(text) for text in ordered]
    assert ordered == [places.value(places.of(text)) for text in ordered]
