"""Where the rows of a walk are cut into ranges, and about how many a range has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, tuple_

from batchkit.sources.tables.counting import count_up_to, planned
from batchkit.sources.tables.keys import bound, own_unique
from batchkit.sources.tables.sampling import Sample, stored
from batchkit.sources.tables.seeking import values_between
from batchkit.sources.tables.walk import Walk, WalkStatements

#: How many rows of a table a split looks at, at least, and for each part.
_SAMPLE = 400
_SAMPLES_PER_PART = 8
#: Each is a parameter of one statement, of which a server takes some ten thousands.
_LARGEST_SAMPLE = 8_000
#: How many keys it takes of what these are joined to.
_MOST_KEYS = 50_000
#: How many rows are counted to weigh a range, and how many more of a range are looked up than it takes to cut it.
_COUNTED = 2000
_LOOKED_UP_PER_PART = 8


def cuts(walk: Walk, connection: Connection, parts: int) -> list[tuple[Any, ...]]:
    """Give the keys that cut a walk into ranges, between rows that are spread over it, in its order."""
    # What has a beginning may be a small part of the table, of which a sample of that has little or nothing.
    found = [] if walk.after is None else _keys_within(walk, connection, parts)
    found = found or _sampled_keys(walk, connection, parts)
    ranges = min(parts, len(found))
    return list(dict.fromkeys(found[len(found) * number // ranges - 1] for number in range(1, ranges)))


def weigh(walk: Walk, connection: Connection) -> int:
    """
    Count the rows where the table has few in their range; else take the planner's word for it, if there is one.

    A filter that lets few rows through would have all of them read to be counted.
    """
    keys = walk.statements(connection).keys_only
    of_table = _without_filters(walk)
    in_range = 0 if of_table is None else count_up_to(connection, of_table.statements(connection).keys_only, _COUNTED)
    if of_table is None or in_range == _COUNTED:
        return max(in_range, planned(connection, keys))
    return count_up_to(connection, keys, _COUNTED)


def _sampled_keys(walk: Walk, connection: Connection, parts: int) -> list[tuple[Any, ...]]:
    """
    Give the keys of some rows from all over a walk, in its order.

    A sample of the table tells which rows are looked up by their unique columns: what the select joins and leaves out
    is so as it is, and no more is read of it. Where it leaves nearly all of them out, the table's own rows are taken.
    """
    own = own_unique(walk.keys)
    names = [column.key for column in own]
    table = walk.keys[0].column.table
    rows, is_whole = Sample(connection, own).take(min(max(_SAMPLE, _SAMPLES_PER_PART * parts), _LARGEST_SAMPLE))
    columns = [stored(table.c[name], connection.dialect.name) for name in names]
    found = _looked_up(walk, connection, columns, rows)
    plain = None if len(found) >= parts or is_whole else _without_filters(walk)
    return found if plain is None else _looked_up(plain, connection, columns, rows)


def _keys_within(walk: Walk, connection: Connection, parts: int) -> list[tuple[Any, ...]]:
    """
    Give the keys of some rows of a walk that has a beginning, spread over it, in its order.

    The first column of the key whose values differ from its beginning to its end is looked into, in the table itself.
    Nothing is given where that cannot be, such as for a type without middles.
    """
    statements = walk.statements(connection)
    keys, begin, end = statements.keys, walk.after, walk.until or _last_key(statements, connection)
    if begin is None or end is None:
        return []
    at = next((index for index, (low, high) in enumerate(zip(begin, end, strict=True)) if low != high), None)
    if at is None or any(key.column.table is not keys[0].column.table for key in keys[: at + 1]):
        return []
    lead = keys[at]
    bounds = (end[at], begin[at]) if lead.descending else (begin[at], end[at])
    within = [key.compared == value for key, value in zip(keys[:at], bound(keys[:at], begin[:at]), strict=True)]
    wanted = _LOOKED_UP_PER_PART * parts
    values = values_between(connection, lead.compared, *bounds, within=within, wanted=wanted)
    values = values[::-1] if lead.descending else values
    # From each value on, and not from the beginning as well: of two bounds, SQLite may take the wrong one.
    base = walk.without_beginning().statements(connection).keys_only.where(*within)
    ordered = base.order_by(None).order_by(*(key.order for key in keys)).limit(1)
    chosen = [values[len(values) * number // parts] for number in range(1, parts)] if len(values) >= parts else []
    found: list[tuple[Any, ...]] = []
    for value in chosen:
        row = connection.execute(ordered.where(lead.not_before(value))).one_or_none()
        # A value need not be there, and the database may order them in another way than they were counted.
        if row is not None and _has(walk, row, connection):
            found.append(tuple(row))
            walk = walk.starting_behind(found[-1])
    # Cuts, and not a sample: the last one stands for what comes behind it.
    return [*found, tuple(end)] if found else []


def _looked_up(
    walk: Walk, connection: Connection, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Give the keys that a walk has of *rows*, which are told by *columns*."""
    statements = walk.statements(connection)
    order = [key.order for key in walk.keys]
    while True:
        is_one = columns[0].in_([row[0] for row in rows]) if len(columns) == 1 else tuple_(*columns).in_(list(rows))
        found = connection.execute(statements.keys_only.where(is_one).order_by(None).order_by(*order).limit(_MOST_KEYS))
        keys = [tuple(row) for row in found]
        if len(keys) < _MOST_KEYS or len(rows) < _SAMPLES_PER_PART:
            return keys
        # Each is joined to many others.
        rows = rows[::10]


def _has(walk: Walk, key: Sequence[Any], connection: Connection) -> bool:
    """Tell whether a walk has a row with this key, in the order of the database."""
    statements = walk.statements(connection)
    here = [each.compared == value for each, value in zip(statements.keys, bound(statements.keys, key), strict=True)]
    return connection.execute(statements.keys_only.where(*here).order_by(None).limit(1)).first() is not None


def _last_key(statements: WalkStatements, connection: Connection) -> tuple[Any, ...] | None:
    row = connection.execute(statements.last).one_or_none()
    return None if row is None else tuple(row)


def _without_filters(walk: Walk) -> Walk | None:
    """Give the rows of the table that has the key, in the same range; None where several tables have it."""
    if any(key.column.table is not walk.keys[0].column.table for key in walk.keys):
        return None
    selected = select(*(key.column for key in walk.keys))
    return Walk(selected, walk.keys, for_update=False, after=walk.after, until=walk.until)
