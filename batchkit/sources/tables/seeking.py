"""Values of a column from all over a range of it, found by looking into its index at some places."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.sql.elements import ColumnElement

from batchkit.sources.tables.places import places_of
from batchkit.sources.tables.probing import spread

#: How many values tell what text is made of.
_SOME = 100
#: How many looks are spent on the widest stretches: what is found need not be good for the run to be right.
_WIDE_LOOKS = 32
#: A key without an index of its own makes each look long. What is found by then has to do.
_MOST_SECONDS = 1.0


def values_between(
    connection: Connection,
    column: Any,  # noqa: ANN401  what a key compares, of whatever type
    first: Any,  # noqa: ANN401  a value of it
    last: Any,  # noqa: ANN401  the same
    *,
    within: Sequence[ColumnElement[bool]],
    wanted: int,
) -> list[Any]:
    """
    Give about *wanted* values of a column, with about as many rows between each two, in its order.

    They lie between *first* and *last* and need not be there. Nothing is given where the type has no middles, or where
    the database has another order than its values do in Python.
    """
    # Each statement has one lower bound: of two, SQLite may begin at the other, and read up to where it should begin.
    ordered = select(column).where(*within, column <= last).order_by(column)
    some = list(connection.execute(ordered.where(column >= first).limit(_SOME)).scalars())
    is_by_node = bool(getattr(connection.dialect, "is_mariadb", False))
    places = places_of([first, last, *some], uuids_by_node=is_by_node)
    if places is None:
        return []

    def look(place: int, limit: int) -> list[int]:
        if time.monotonic() > ends_at:
            return []
        values = connection.execute(ordered.where(column >= places.value(place)).limit(limit)).scalars()
        # The database may order text in another way.
        return sorted(max(place, places.of(value)) for value in values)

    ends_at = time.monotonic() + _MOST_SECONDS
    found = spread(places.of(first), places.of(last), look=look, wanted=wanted, wide_looks=_WIDE_LOOKS)
    return [places.value(place) for place in found]
