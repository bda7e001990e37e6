"""Some of the rows of a table, from all over it, without reading the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Integer, String, Table, func, literal, literal_column, select, type_coerce
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import NULLTYPE
from sqlalchemy.types import Enum as EnumType

from batchkit.sources.tables.places import Places, places_of
from batchkit.sources.tables.probing import spread

#: Each place is asked for by itself, so that so many are enough, or this share of the rows that are wanted.
_PLACES, _SHARE_OF_PLACES = 400, 4
#: A table with no more rows is read whole.
SMALL = 1000
#: How many blocks of a large table are read on PostgreSQL: rows of one block are neighbours, so it takes many of them.
_BLOCKS = 2000
_BLOCK_BYTES = 8192
#: How many rows a block has where the server has not counted them yet.
_ROWS_PER_BLOCK = 50

Row = tuple[Any, ...]


class Sample:
    """Rows of a table by *columns*, which are its own and together unique."""

    def __init__(self, connection: Connection, columns: Sequence[Column[Any]]) -> None:
        self._connection = connection
        self._columns = columns
        table: object = columns[0].table if columns else None
        self._table = table if isinstance(table, Table) else None

    def take(self, wanted: int) -> tuple[list[Row], bool]:
        """Give about *wanted* rows, in no order, or all of a small table; say whether these are all."""
        table = self._table
        if table is None:
            return [], False
        few = self._rows(select(*self._expressions).limit(SMALL + 1))
        if len(few) <= SMALL:
            return few, True
        if self._connection.dialect.name == "postgresql":
            return self._from_blocks(table, wanted), False
        if self._connection.dialect.name == "sqlite":
            try:
                return self._by_seeks(table, literal_column("rowid", Integer), wanted), False
            except DBAPIError as error:
                if "no such column" not in str(error.orig):
                    raise
        return self._by_seeks(table, self._columns[0], wanted), False

    @property
    def _expressions(self) -> list[ColumnElement[Any]]:
        return [stored(column, self._connection.dialect.name) for column in self._columns]

    @property
    def _orders_uuids_by_node(self) -> bool:
        # Only MySQL's dialect has it.
        return bool(getattr(self._connection.dialect, "is_mariadb", False))

    def _rows(self, statement: Any) -> list[Row]:  # noqa: ANN401  a select of any columns
        return [tuple(row) for row in self._connection.execute(statement)]

    def _from_blocks(self, table: Table, wanted: int) -> list[Row]:
        """Have PostgreSQL choose blocks by chance, and of their rows some."""
        name = self._connection.dialect.identifier_preparer.format_table(table)
        found = self._connection.execute(
            sql(
                "SELECT c.relkind, c.reltuples, pg_relation_size(c.oid) + "
                "coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(c.oid)), 0) "
                "FROM pg_class c WHERE c.oid = to_regclass(:name)"
            ),
            {"name": name},
        ).one_or_none()
        if found is None or found[0] not in ("r", "m", "p") or not found[2]:
            return []
        blocks = max(1, int(found[2]) // _BLOCK_BYTES)
        share = min(1.0, max(min(_BLOCKS, blocks // 8), wanted // 2) / blocks)
        rows = max(float(found[1]), 0.0) or float(blocks * _ROWS_PER_BLOCK)
        sampled = table.tablesample(func.system(literal(100.0 * share)))
        keep = min(1.0, 2.0 * wanted / max(rows * share, 1.0))
        columns = [sampled.c[column.key] for column in self._columns]
        taken = self._rows(select(*columns).where(func.random() < literal(keep)))
        # How many rows there are was a guess.
        return random.sample(taken, wanted) if len(taken) > wanted else taken

    def _by_seeks(self, table: Table, lead: ColumnElement[Any], wanted: int) -> list[Row]:
        """Look into the index of a column at some of its values: at more of them where there are more rows."""
        bounds = [
            self._connection.execute(select(lead).select_from(table).order_by(order).limit(1)).scalar()
            for order in (lead.asc(), lead.desc())
        ]
        some = self._connection.scalars(select(lead).select_from(table).limit(SMALL))
        places = None if None in bounds else places_of([*bounds, *some], uuids_by_node=self._orders_uuids_by_node)
        if places is None:
            return []
        first, last = (places.of(bound) for bound in bounds)
        fewer = max(_PLACES, wanted // _SHARE_OF_PLACES)
        found = spread(first, last, look=self._look(table, lead, places), wanted=fewer)
        ordered = select(*self._expressions).order_by(lead).limit(1)
        rows = (self._rows(ordered.where(lead >= places.value(place))) for place in found)
        return list(dict.fromkeys(row for some in rows for row in some))

    def _look(self, table: Table, lead: ColumnElement[Any], places: Places) -> Callable[[int, int], Sequence[int]]:
        ordered = select(lead).select_from(table).order_by(lead)

        def look(place: int, limit: int) -> list[int]:
            values = self._connection.execute(ordered.where(lead >= places.value(place)).limit(limit)).scalars()
            # The database may order text in another way.
            return sorted(max(place, places.of(value)) for value in values)

        return look


def stored(column: Any, dialect: str) -> Any:  # noqa: ANN401  a column of a table or of an alias
    """Give a column with the values that the database holds: SQLite keeps some as text, in more than one spelling."""
    kind = column.type
    if dialect != "sqlite" or (isinstance(kind, Integer | String) and not isinstance(kind, EnumType)):
        return column
    return type_coerce(column, NULLTYPE)
