"""
Steps of migrations, each of which does nothing where it was done before.

On MySQL each of them commits by itself, so that a migration which was killed is left half done.
"""

from __future__ import annotations

from typing import Any

from alembic import context, op
from sqlalchemy import Column, TextClause, inspect
from sqlalchemy.sql.schema import SchemaItem

from batchkit.store.tables import MYSQL_OPTIONS


def create_table(name: str, *items: SchemaItem) -> None:
    """Make a table of ours."""
    if not _has_table(name):
        op.create_table(name, *items, schema=_schema(), **MYSQL_OPTIONS)


def drop_table(name: str) -> None:
    """Drop a table."""
    if _has_table(name) is not False:
        op.drop_table(name, schema=_schema())


def create_index(
    name: str, table: str, columns: list[str], *, unique: bool = False, where: TextClause | None = None
) -> None:
    """Make an index; with *where*, of those rows only, where the database can."""
    if not _has_index(name, table):
        some: dict[str, Any] = {} if where is None else {"postgresql_where": where, "sqlite_where": where}
        op.create_index(name, table, columns, unique=unique, schema=_schema(), **some)


def drop_index(name: str, table: str) -> None:
    """Drop an index."""
    if _has_index(name, table) is not False:
        op.drop_index(name, table, schema=_schema())


def add_column(table: str, column: Column[Any]) -> None:
    """Add a column."""
    if not _has_column(column.name, table):
        op.add_column(table, column, schema=_schema())


def drop_column(name: str, table: str) -> None:
    """Drop a column."""
    if _has_column(name, table) is not False:
        op.drop_column(table, name, schema=_schema())


# None says that nobody knows: the statements are printed, for a database that is not here.


def _has_table(name: str) -> bool | None:
    return None if context.is_offline_mode() else inspect(op.get_bind()).has_table(name, schema=_schema())


def _has_index(name: str, table: str) -> bool | None:
    if context.is_offline_mode():
        return None
    return name in {index["name"] for index in inspect(op.get_bind()).get_indexes(table, schema=_schema())}


def _has_column(name: str, table: str) -> bool | None:
    if context.is_offline_mode():
        return None
    return name in {column["name"] for column in inspect(op.get_bind()).get_columns(table, schema=_schema())}


def _schema() -> str | None:
    schema: str | None = context.config.attributes["schema"]
    return schema
