"""A select that is walked by a key, and its statements on each kind of database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Integer, Select, Table, bindparam, inspect
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.selectable import AliasedReturnsRows

from batchkit.sources.tables.keys import Key, behind, behind_by_cases, bound, column_of_table

LIMIT = "batchkit_limit"
MYSQL = ("mysql", "mariadb")


class Walk:
    """A select with its key, and where it begins and ends."""

    def __init__(
        self,
        selected: Select[Any],
        keys: tuple[Key, ...],
        *,
        for_update: bool,
        after: tuple[Any, ...] | None = None,
        until: tuple[Any, ...] | None = None,
    ) -> None:
        self.selected = selected
        self.keys = keys
        self.for_update = for_update
        self.after = after
        self.until = until
        descriptions = selected.column_descriptions
        self.width = len(descriptions)
        self.is_orm = any(description.get("entity") is not None for description in descriptions)
        self.is_provably_unique = _is_one_table(selected)
        self.attributes = _attributes(descriptions, keys) if self.width == 1 else ()
        self._statements: dict[str, WalkStatements] = {}

    def statements(self, bind: Engine | Connection) -> WalkStatements:
        """Give the statements for a database, built once: SQLAlchemy then finds their text by the object."""
        name = bind.dialect.name
        if name not in self._statements:
            keys, is_mysql = self.keys, name in MYSQL
            if is_mysql:
                keys = tuple(key.as_numbered(bind.dialect) for key in keys)
            elif name == "sqlite":
                keys = tuple(key.as_stored() for key in keys)
            self._statements[name] = WalkStatements(self, keys, compares_tuples=not is_mysql)
        return self._statements[name]

    def ending_at(self, until: tuple[Any, ...]) -> Walk:
        """Give the same walk without what lies behind *until*."""
        return Walk(self.selected, self.keys, for_update=self.for_update, after=self.after, until=until)

    def without_beginning(self) -> Walk:
        """Give the same walk from the first row on."""
        return Walk(self.selected, self.keys, for_update=self.for_update, until=self.until)

    def starting_behind(self, after: tuple[Any, ...]) -> Walk:
        """Give the same walk from behind *after* on."""
        return Walk(self.selected, self.keys, for_update=self.for_update, after=after, until=self.until)


class WalkStatements:
    """The statements that read a part of a walk, for one kind of database."""

    def __init__(self, walk: Walk, keys: tuple[Key, ...], *, compares_tuples: bool) -> None:
        is_behind = behind if compares_tuples else behind_by_cases
        base = walk.selected if walk.until is None else walk.selected.where(~is_behind(keys, bound(keys, walk.until)))
        base = base if walk.after is None else base.where(is_behind(keys, bound(keys, walk.after)))
        columns = [key.compared.label(f"batchkit_key_{index}") for index, key in enumerate(keys)]
        self.keys_only: Select[Any] = base.with_only_columns(*columns, maintain_column_froms=True)
        self.last = self.keys_only.order_by(None).order_by(*(key.reverse for key in keys)).limit(1)
        positions = None if walk.is_orm else _positions(walk.selected, keys)
        if positions is None:
            base = base.add_columns(*columns)
            positions = list(range(walk.width, walk.width + len(keys)))
        self.positions = tuple(positions)
        ordered = base.order_by(*(key.order for key in keys)).limit(bindparam(LIMIT, type_=Integer))
        self.first = ordered.with_for_update() if walk.for_update else ordered
        self.keys = keys
        self.names = tuple(f"batchkit_after_{index}" for index in range(len(keys)))
        binds = tuple(bindparam(name, type_=key.type) for name, key in zip(self.names, keys, strict=True))
        self.next = self.first.where(is_behind(keys, binds))


def _attributes(descriptions: Sequence[Any], keys: Sequence[Key]) -> tuple[str, ...]:
    """Give the names under which objects of the select have the key, where they are objects and have it."""
    entity = descriptions[0].get("entity")
    if entity is None or descriptions[0]["expr"] is not entity:
        return ()
    mapper = inspect(entity).mapper
    try:
        return tuple(mapper.get_property_by_column(column_of_table(key.column)).key for key in keys)
    except UnmappedColumnError:
        # The key is another table's.
        return ()


def _is_one_table(selected: Select[Any]) -> bool:
    froms = selected.get_final_froms()
    if len(froms) != 1:
        return False
    table: object = froms[0]
    while isinstance(table, AliasedReturnsRows):
        table = table.element
    return isinstance(table, Table)


def _positions(selected: Select[Any], keys: Sequence[Key]) -> list[int] | None:
    columns = list(selected.selected_columns)
    found = [next((at for at, column in enumerate(columns) if column is key.compared), None) for key in keys]
    return None if None in found else [at for at in found if at is not None]
