"""What a run has left behind, as text, so that the ends of two runs can be compared."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Engine, MetaData, Table, select

from batchkit.testing.errors import InvalidCrashTest

#: The rows of each part.
Snapshot: TypeAlias = dict[str, list[str]]

_NOT_THE_JOBS = ("batchkit_", "alembic_version")
_SHOWN_ROWS = 3
_LONGEST_ROW = 200


def snapshot_of(engine: Engine, taken: Callable[[Engine], object] | None, *, ignore: Collection[str]) -> Snapshot:
    """
    Take a snapshot: with the user's function, or of all tables that are not batchkit's but for the columns in *ignore*.

    Raises:
        InvalidCrashTest: one of *ignore* is no column.
    """
    if taken is None:
        with engine.connect() as tx:
            return _tables(tx, ignore)
    given = taken(engine)
    parts = given if isinstance(given, Mapping) else {"the snapshot": given}
    return {str(name): _lines(part) for name, part in parts.items()}


def differences(wanted: Snapshot, found: Snapshot) -> list[str]:
    """Say in what *found* is not as *wanted*, a line for each part."""
    said = []
    for part in dict.fromkeys([*wanted, *found]):
        before, after = wanted.get(part, []), found.get(part, [])
        missing, more = Counter(before) - Counter(after), Counter(after) - Counter(before)
        if missing or more:
            listings = [_listing(missing, "missing"), _listing(more, "too many")]
            said.append(f"{part}: {'; '.join(filter(None, listings))}")
        elif before != after:
            said.append(f"{part}: the same rows in another order")
    return said


def reflected(tx: Connection) -> MetaData:
    """Read which tables there are."""
    metadata = MetaData()
    with warnings.catch_warnings():
        # Of types that SQLAlchemy does not know, and of tables that refer to each other.
        warnings.simplefilter("ignore")
        metadata.reflect(tx)
    return metadata


def _listing(rows: Counter[str], what: str) -> str:
    if not rows:
        return ""
    shown = [row if len(row) <= _LONGEST_ROW else f"{row[:_LONGEST_ROW]}..." for row in rows.elements()]
    rest = f" and {len(shown) - _SHOWN_ROWS} more" if len(shown) > _SHOWN_ROWS else ""
    return f"{len(shown)} {what}: {' | '.join(shown[:_SHOWN_ROWS])}{rest}"


def _lines(part: object) -> list[str]:
    """Give the rows of a part; only sets have no order."""
    if isinstance(part, list | tuple):
        return [_text(row) for row in part]
    if isinstance(part, AbstractSet):
        return sorted(_text(row) for row in part)
    if isinstance(part, str):
        # The text of a file: a difference is shown by its lines, ends of lines included.
        return [repr(line) for line in part.splitlines(keepends=True)]
    if isinstance(part, bytes):
        return [repr(line) for line in part.splitlines(keepends=True)]
    return [_text(part)]


def _text(value: object) -> str:
    """Give a text that is the same in every process: sets and dicts are put into order."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{_text(key)}: {_text(each)}" for key, each in value.items())) + "}"
    if isinstance(value, AbstractSet):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_text, value)) + ")"
    return repr(value)


def _tables(tx: Connection, ignore: Collection[str]) -> Snapshot:
    metadata = reflected(tx)
    tables = [table for name, table in sorted(metadata.tables.items()) if not name.startswith(_NOT_THE_JOBS)]
    _check(ignore, tables)
    ranks = {column: _ranks(tx, column) for table in tables for column in table.columns if _is_numbered(column)}
    parts = {}
    for table in tables:
        shown = [column for column in table.columns if f"{table.name}.{column.name}" not in ignore]
        rows = tx.execute(select(*shown)).all() if shown else []
        numbered = [ranks.get(_root(column), {}) for column in shown]
        parts[f"table {table.name}"] = sorted(
            ", ".join(
                f"{column.name}={_text(rank.get(value, value))}"
                for column, rank, value in zip(shown, numbered, row, strict=True)
            )
            for row in rows
        )
    return parts


def _check(ignore: Collection[str], tables: list[Table]) -> None:
    known = {f"{table.name}.{column.name}" for table in tables for column in table.columns}
    for name in ignore:
        if name not in known:
            listing = ", ".join(sorted(known)) or "none"
            raise InvalidCrashTest(f"ignore={name!r} is no column; they are written table.column: {listing}")


def _is_numbered(column: Column[Any]) -> bool:
    """Tell whether the database numbers the rows, and leaves gaps; SQLite leaves none."""
    return column.primary_key and column.autoincrement is True


def _ranks(tx: Connection, column: Column[Any]) -> dict[object, int]:
    """
    Give each number of a column its rank.

    A chunk that was rolled back has used up numbers, so those behind it are higher than in an undisturbed run.
    """
    return {value: rank for rank, value in enumerate(tx.scalars(select(column).order_by(column)), start=1)}


def _root(column: Column[Any]) -> Column[Any]:
    """Give the column whose values a foreign key repeats, else the column itself."""
    for key in column.foreign_keys:
        return key.column
    return column
