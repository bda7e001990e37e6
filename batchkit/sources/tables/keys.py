"""The key that rows are walked by: its columns, what may be one, and comparing with its values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    Integer,
    String,
    Table,
    UniqueConstraint,
    and_,
    bindparam,
    or_,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ColumnElement, UnaryExpression
from sqlalchemy.sql.selectable import AliasedReturnsRows
from sqlalchemy.types import NULLTYPE, TypeDecorator, TypeEngine
from sqlalchemy.types import Enum as EnumType

from batchkit.errors import InvalidSource

# Any: SQLAlchemy's own types of column expressions differ between 2.0 and 2.1.
KeyPart = Any


@dataclass(frozen=True)
class Key:
    """One column of a key. `compared` is the expression that cursors are values of."""

    expression: Any
    column: Column[Any]
    descending: bool
    compared: Any

    @property
    def name(self) -> str:
        """What errors call it: table.column."""
        return f"{self.column.table.name}.{self.column.name}"

    @property
    def order(self) -> ColumnElement[Any]:
        """What ORDER BY has for it."""
        ordered: ColumnElement[Any] = self.expression.desc() if self.descending else self.expression.asc()
        return ordered

    @property
    def reverse(self) -> ColumnElement[Any]:
        """What ORDER BY has for it from the end."""
        ordered: ColumnElement[Any] = self.expression.asc() if self.descending else self.expression.desc()
        return ordered

    @property
    def type(self) -> TypeEngine[Any]:
        """The type of its cursors."""
        kind: TypeEngine[Any] = self.compared.type
        return kind

    def as_stored(self) -> Key:
        """
        Give the same key with the values that the database holds, not what SQLAlchemy makes of them.

        SQLite keeps moments, UUIDs and decimals as text or floats, in more than one spelling. A value that was read and
        is bound again may be spelled in another way, and then compares as before or behind its own row.
        """
        if isinstance(self.column.type, Integer | String) and not isinstance(self.column.type, EnumType):
            return self
        return replace(self, compared=type_coerce(self.expression, NULLTYPE))

    def as_numbered(self, dialect: Dialect) -> Key:
        """Give the same key with the numbers of an ENUM's words: MySQL orders by those, but compares the words."""
        # What the database has, and not what the class is called: an Enum may be kept as text, whose numbers are all 0.
        kept = self.column.type.dialect_impl(dialect)
        while isinstance(kept, TypeDecorator):
            kept = kept.impl_instance
        if not isinstance(kept, mysql.ENUM):
            return self
        return replace(self, compared=type_coerce(self.expression, Integer) + 0)

    def behind(self, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
        """Say that a row comes after *value*."""
        compared: ColumnElement[bool] = self.compared < value if self.descending else self.compared > value
        return compared

    def not_before(self, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
        """Say that a row comes after *value*, or has it."""
        compared: ColumnElement[bool] = self.compared <= value if self.descending else self.compared >= value
        return compared


def key_of(part: KeyPart) -> Key:
    """
    Make a column, in a direction, a part of a key.

    Raises:
        InvalidSource: it is no column of a table, or its values do not come back from a cursor.
    """
    descending = False
    expression = part
    if isinstance(part, UnaryExpression) and part.modifier in (operators.desc_op, operators.asc_op):
        descending = part.modifier is operators.desc_op
        expression = part.element
    column = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
    if not isinstance(column, Column) or table_of(column) is None:
        raise InvalidSource(
            f"the key {part} is not a column of a table; give one, such as key=User.id, or a tuple of several"
        )
    if isinstance(column.type, Float):
        raise InvalidSource(
            f"the key {part} is a floating-point number, which does not come back from a cursor exactly; "
            f"use the primary key, or another key of whole numbers, text, moments or decimals"
        )
    return Key(expression=expression, column=column, descending=descending, compared=expression)


def check_keys(keys: Sequence[Key]) -> None:
    """
    See that rows can be walked by *keys*.

    Raises:
        InvalidSource: some rows would be skipped.
    """
    if not keys:
        raise InvalidSource("the key is empty; give a column, such as key=User.id, or a tuple of several")
    table = table_of(keys[0].column)
    for key in keys:
        if key.column.nullable and not key.column.primary_key:
            raise InvalidSource(
                f"the key {key.name} may be NULL, and such rows would be skipped; "
                f"use a column that is NOT NULL, such as the primary key{_suggestion(table)}"
            )
    if table is None or not any(_is_within(columns, keys, table) for columns in _unique_sets(table)):
        raise InvalidSource(
            f"the key {names_of(keys)} is not unique, so rows with equal keys would be skipped where chunks meet; "
            f"add the primary key behind it{_suggestion(table, keys)}"
        )


def behind(keys: Sequence[Key], values: Sequence[Any]) -> ColumnElement[bool]:
    """Say that a row comes after the one with these key values."""
    if len(keys) == 1:
        return keys[0].behind(values[0])
    if len({key.descending for key in keys}) == 1:
        here = tuple_(*(key.compared for key in keys))
        there = tuple_(*values)
        return here < there if keys[0].descending else here > there
    return behind_by_cases(keys, values)


def behind_by_cases(keys: Sequence[Key], values: Sequence[Any]) -> ColumnElement[bool]:
    """
    Say the same where there is no comparison of tuples, which have one direction, or none that uses an index: MySQL's.

    The first condition is implied, and lets an index be used.
    """
    if len(keys) == 1:
        return keys[0].behind(values[0])
    cases = [
        and_(
            *(key.compared == value for key, value in zip(keys[:index], values[:index], strict=True)),
            keys[index].behind(values[index]),
        )
        for index in range(len(keys))
    ]
    return and_(keys[0].not_before(values[0]), or_(*cases))


def bound(keys: Sequence[Key], values: Sequence[Any]) -> tuple[ColumnElement[Any], ...]:
    """Make the values of a key into parameters of its types."""
    return tuple(bindparam(None, value, type_=key.type) for key, value in zip(keys, values, strict=True))


def parts_of(cursor: Any, keys: Sequence[Key]) -> tuple[Any, ...]:  # noqa: ANN401
    """
    Give the values that a cursor has of each part of the key.

    Raises:
        InvalidSource: it has not as many.
    """
    if len(keys) == 1:
        return (cursor,)
    if not isinstance(cursor, tuple | list) or len(cursor) != len(keys):
        raise InvalidSource(f"{cursor!r} is not a cursor of rows with the key {names_of(keys)}")
    return tuple(cursor)


def check_comparable(key: Key, value: object) -> None:
    """Refuse a number for text and text for a number, which some databases compare all the same, and find nothing."""
    for kind, python in ((Integer, int), (String, str)):
        is_of_kind = isinstance(key.column.type, kind) and not isinstance(key.column.type, EnumType)
        if is_of_kind and not isinstance(value, python):
            raise InvalidSource(
                f"{value!r} is not a cursor of rows with the key {key.name}, whose values are {python.__name__}"
            )


def check_neighbours(keys: Sequence[Key], cursors: Sequence[Any]) -> None:
    """
    See that no two rows that were read one after the other have the same key.

    Raises:
        InvalidSource: two have.
    """
    for before, after in itertools.pairwise(cursors):
        if before == after:
            raise InvalidSource(
                f"two rows of the select have the same key ({names_of(keys)}: {before!r}), so one would be skipped "
                f"where chunks meet; add the key of the joined table to key=(...), or use .distinct() or an EXISTS "
                f"instead of the join"
            )


def names_of(keys: Sequence[Key]) -> str:
    """Give what errors call a key."""
    return ", ".join(key.name for key in keys)


def type_name(column: Column[Any]) -> str:
    """Give the name of the Python type of a column."""
    try:
        return str(column.type.python_type.__name__)
    except NotImplementedError:
        return type(column.type).__name__


def own_unique(keys: Sequence[Key]) -> list[Column[Any]]:
    """Give the fewest columns of the key's table that tell its rows apart and are in the key."""
    table = table_of(keys[0].column)
    if table is None:
        return []
    within = [list(columns) for columns in _unique_sets(table) if _is_within(columns, keys, table)]
    return min(within, key=len)


def table_of(column: Column[Any]) -> Table | None:
    """Give the table that a column is of, through aliases."""
    table: object = column.table
    while isinstance(table, AliasedReturnsRows):
        table = table.element
    return table if isinstance(table, Table) else None


def column_of_table(column: Column[Any]) -> Column[Any]:
    """Give the table's own column for one of an alias."""
    table = table_of(column)
    return column if table is None else table.c[column.key]


def _is_within(columns: Sequence[Column[Any]], keys: Sequence[Key], table: Table) -> bool:
    names = {key.column.name for key in keys if table_of(key.column) is table}
    return bool(columns) and all(
        column.name in names and (column.primary_key or not column.nullable) for column in columns
    )


def _unique_sets(table: Table) -> Iterable[Sequence[Column[Any]]]:
    yield list(table.primary_key.columns)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield list(constraint.columns)
    for index in table.indexes:
        is_partial = any(options.get("where") is not None for options in index.dialect_options.values())
        if index.unique and not is_partial and all(isinstance(each, Column) for each in index.expressions):
            yield list(index.columns)


def _suggestion(table: Table | None, keys: Sequence[Key] = ()) -> str:
    if table is None or not table.primary_key.columns:
        return ""
    columns = [key.name for key in keys] + [f"{table.name}.{column.name}" for column in table.primary_key.columns]
    return f": key=({', '.join(dict.fromkeys(columns))})"
