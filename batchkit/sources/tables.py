"""Rows of a table, walked by key."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    Result,
    Row,
    Select,
    String,
    Table,
    UniqueConstraint,
    and_,
    bindparam,
    func,
    inspect,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, UnaryExpression
from sqlalchemy.sql.expression import Executable
from sqlalchemy.sql.selectable import AliasedReturnsRows
from sqlalchemy.types import NULLTYPE, TypeDecorator, TypeEngine
from sqlalchemy.types import Enum as EnumType

from batchkit.errors import InvalidSource
from batchkit.sources.base import Estimate, Source
from batchkit.sources.sampling import Sample, stored
from batchkit.sources.seeking import values_between

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

T = TypeVar("T")

_LIMIT = "batchkit_limit"
_COUNT_SECONDS = 5.0
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
_QUERY_CANCELED = "57014"
_MYSQL = ("mysql", "mariadb")
#: ER_STATEMENT_TIMEOUT of MariaDB and ER_QUERY_TIMEOUT of MySQL.
_MYSQL_TOO_LONG = (1969, 3024)

# Any: SQLAlchemy's own types of column expressions differ between 2.0 and 2.1.
KeyPart = Any


# In SQLAlchemy 2.0 select(User) is a Select[tuple[User]], in 2.1 a Select[User]; the first that fits is taken.
@overload
def rows(
    selected: Select[tuple[T]],
    key: KeyPart | tuple[KeyPart, ...],
    *,
    follow: bool = ...,
    for_update: bool = ...,
) -> Source[T]: ...
@overload
def rows(
    selected: Select[T],
    key: KeyPart | tuple[KeyPart, ...],
    *,
    follow: bool = ...,
    for_update: bool = ...,
) -> Source[T]: ...
@overload
def rows(
    selected: Any,  # noqa: ANN401  several columns: the two versions have no way of writing it in common
    key: KeyPart | tuple[KeyPart, ...],
    *,
    follow: bool = ...,
    for_update: bool = ...,
) -> Source[Row[Any]]: ...
def rows(
    selected: Any,
    key: KeyPart | tuple[KeyPart, ...],
    *,
    follow: bool = False,
    for_update: bool = False,
) -> Source[Any]:
    """
    Walk the rows of a select by key, never by OFFSET: objects for `select(User)`, values for one column, else rows.

    Promised are the rows that were committed when the run was planned. The upper end is fixed then, so that a growing
    table still ends.

    Args:
        selected: the select, without ORDER BY, LIMIT and OFFSET.
        key: a column, or a tuple of several, that is never NULL and together unique; `User.id.desc()` walks down.
        follow: do not fix the upper end: rows that are added behind the cursor while the run goes on are done as well.
        for_update: lock the rows of each chunk, for a function that reads, decides and writes while others do too.

    Raises:
        InvalidSource: the select or the key cannot be walked without skipping rows; it says how to mend it.
    """
    keys = tuple(_key(part) for part in (key if isinstance(key, tuple) else (key,)))
    _check_select(selected)
    _check_keys(keys)
    walk = _Walk(selected, keys, for_update=for_update)
    return _Rows(walk) if follow else _BoundedRows(walk)


@dataclass(frozen=True)
class _Key:
    """One column of a key. `compared` is the expression that cursors are values of."""

    expression: Any
    column: Column[Any]
    descending: bool
    compared: Any

    @property
    def name(self) -> str:
        return f"{self.column.table.name}.{self.column.name}"

    @property
    def order(self) -> ColumnElement[Any]:
        ordered: ColumnElement[Any] = self.expression.desc() if self.descending else self.expression.asc()
        return ordered

    @property
    def reverse(self) -> ColumnElement[Any]:
        ordered: ColumnElement[Any] = self.expression.asc() if self.descending else self.expression.desc()
        return ordered

    @property
    def type(self) -> TypeEngine[Any]:
        """The type of its cursors."""
        kind: TypeEngine[Any] = self.compared.type
        return kind

    def as_stored(self) -> _Key:
        """
        Give the same key with the values that the database holds, not what SQLAlchemy makes of them.

        SQLite keeps moments, UUIDs and decimals as text or floats, in more than one spelling. A value that was read and
        is bound again may be spelled in another way, and then compares as before or behind its own row.
        """
        if isinstance(self.column.type, Integer | String) and not isinstance(self.column.type, EnumType):
            return self
        return replace(self, compared=type_coerce(self.expression, NULLTYPE))

    def as_numbered(self, dialect: Dialect) -> _Key:
        """Give the same key with the numbers of an ENUM's words: MySQL orders by those, but compares the words."""
        # What the database has, and not what the class is called: an Enum may be kept as text, whose numbers are all 0.
        kept = self.column.type.dialect_impl(dialect)
        while isinstance(kept, TypeDecorator):
            kept = kept.impl_instance
        if not isinstance(kept, mysql.ENUM):
            return self
        return replace(self, compared=type_coerce(self.expression, Integer) + 0)

    def behind(self, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
        compared: ColumnElement[bool] = self.compared < value if self.descending else self.compared > value
        return compared

    def not_before(self, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
        compared: ColumnElement[bool] = self.compared <= value if self.descending else self.compared >= value
        return compared


class _Walk:
    """A select with its key, and where it begins and ends."""

    def __init__(
        self,
        selected: Select[Any],
        keys: tuple[_Key, ...],
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
        self._statements: dict[str, _Statements] = {}

    def statements(self, bind: Engine | Connection) -> _Statements:
        """Give the statements for a database, built once: SQLAlchemy then finds their text by the object."""
        name = bind.dialect.name
        if name not in self._statements:
            keys, is_mysql = self.keys, name in _MYSQL
            if is_mysql:
                keys = tuple(key.as_numbered(bind.dialect) for key in keys)
            elif name == "sqlite":
                keys = tuple(key.as_stored() for key in keys)
            self._statements[name] = _Statements(self, keys, compares_tuples=not is_mysql)
        return self._statements[name]

    def ending_at(self, until: tuple[Any, ...]) -> _Walk:
        return _Walk(self.selected, self.keys, for_update=self.for_update, after=self.after, until=until)

    def without_beginning(self) -> _Walk:
        return _Walk(self.selected, self.keys, for_update=self.for_update, until=self.until)

    def starting_behind(self, after: tuple[Any, ...]) -> _Walk:
        return _Walk(self.selected, self.keys, for_update=self.for_update, after=after, until=self.until)


class _Statements:
    """The statements that read a part of a walk, for one kind of database."""

    def __init__(self, walk: _Walk, keys: tuple[_Key, ...], *, compares_tuples: bool) -> None:
        behind = _behind if compares_tuples else _behind_by_cases
        base = walk.selected if walk.until is None else walk.selected.where(~behind(keys, _bound(keys, walk.until)))
        base = base if walk.after is None else base.where(behind(keys, _bound(keys, walk.after)))
        columns = [key.compared.label(f"batchkit_key_{index}") for index, key in enumerate(keys)]
        self.keys_only: Select[Any] = base.with_only_columns(*columns, maintain_column_froms=True)
        self.last = self.keys_only.order_by(None).order_by(*(key.reverse for key in keys)).limit(1)
        positions = None if walk.is_orm else _positions(walk.selected, keys)
        if positions is None:
            base = base.add_columns(*columns)
            positions = list(range(walk.width, walk.width + len(keys)))
        self.positions = tuple(positions)
        ordered = base.order_by(*(key.order for key in keys)).limit(bindparam(_LIMIT, type_=Integer))
        self.first = ordered.with_for_update() if walk.for_update else ordered
        self.keys = keys
        self.names = tuple(f"batchkit_after_{index}" for index in range(len(keys)))
        binds = tuple(bindparam(name, type_=key.type) for name, key in zip(self.names, keys, strict=True))
        self.next = self.first.where(behind(keys, binds))


class _Rows(Generic[T]):
    """The rows, wherever they end."""

    def __init__(self, walk: _Walk) -> None:
        self._walk = walk
        self._needs_unique = False
        #: the object that was read last, and what its key was then
        self._last: tuple[Any, dict[str, Any]] | None = None

    def read(self, after: Any, limit: int, session: Session) -> Sequence[tuple[T, Any]]:  # noqa: ANN401
        """Give the rows behind *after*; one more is read where only the rows themselves can show that keys repeat."""
        bind = session.get_bind(clause=self._walk.selected)
        if self.reads_columns and isinstance(bind, Connection):
            return self.read_by(after, limit, bind)
        return self._read(after, limit, bind, session.execute)

    @property
    def reads_columns(self) -> bool:
        """Whether it reads columns, to which the ORM has nothing to add; and that takes its time."""
        return not self._walk.is_orm

    def read_by(self, after: Any, limit: int, connection: Connection) -> Sequence[tuple[T, Any]]:  # noqa: ANN401
        """Give the columns that `read` gives, without a session."""
        return self._read(after, limit, connection, connection.execute)

    def _read(
        self, after: object, limit: int, bind: Engine | Connection, execute: Callable[..., Result[Any]]
    ) -> Sequence[tuple[T, Any]]:
        walk = self._walk
        extra = 0 if walk.is_provably_unique else 1
        values: dict[str, Any] = {_LIMIT: limit + extra}
        statements = walk.statements(bind)
        if after is None:
            statement = statements.first
        else:
            statement = statements.next
            values.update(zip(statements.names, _parts(after, walk.keys), strict=True))
        items, found = self._fetch(statement, values, execute)
        pairs = self._pairs(items, found, statements.positions)
        if extra:
            _check_neighbours(walk.keys, [cursor for _, cursor in pairs])
        pairs = pairs[:limit]
        if walk.attributes and pairs:
            last = pairs[-1][0]
            self._last = (last, {name: last.__dict__[name] for name in walk.attributes if name in last.__dict__})
        return pairs

    def moved(self) -> str | None:
        """Name the part of the key that is not what it was in the object that was read last, if one is."""
        if self._last is None:
            return None
        item, key = self._last
        # What is not there was expired or deferred, and to ask for it would be a query.
        now = item.__dict__
        return next((name for name, value in key.items() if name in now and now[name] != value), None)

    def count(self, session: Session) -> int:
        """Count the rows; where that takes a server longer than a few seconds, take its planner's word for it."""
        connection = session.connection()
        keys = self._walk.statements(connection).keys_only
        counted = select(func.count()).select_from(keys.subquery())
        if connection.dialect.name == "postgresql":
            return _count_on_postgresql(connection, counted, keys)
        if connection.dialect.name in _MYSQL:
            return _count_on_mysql(connection, counted, keys)
        return int(connection.execute(counted).scalar_one())

    def behind(self, after: Any) -> Source[T]:  # noqa: ANN401
        """Give the same rows without those up to the one with the key *after*."""
        parts = _parts(after, self._walk.keys)
        for key, part in zip(self._walk.keys, parts, strict=True):
            _check_comparable(key, part)
        return type(self)(self._walk.starting_behind(parts))

    def split(self, parts: int, session: Session) -> list[Any]:
        """Cut them between rows that are spread over them, such as the select has them, in the order of the key."""
        connection = session.connection()
        # What has a beginning may be a small part of the table, of which a sample of that has little or nothing.
        found = [] if self._walk.after is None else _keys_within(self._walk, connection, parts)
        found = found or _sampled_keys(self._walk, connection, parts)
        ranges = min(parts, len(found))
        cuts = [found[len(found) * number // ranges - 1] for number in range(1, ranges)]
        return [cut[0] if len(self._walk.keys) == 1 else cut for cut in dict.fromkeys(cuts)]

    def weigh(self, session: Session) -> int:
        """
        Count the rows where the table has few in their range; else take the planner's word for it, if there is one.

        A filter that lets few rows through would have all of them read to be counted.
        """
        connection = session.connection()
        keys = self._walk.statements(connection).keys_only
        of_table = _without_filters(self._walk)
        in_range = 0 if of_table is None else _counted(connection, of_table.statements(connection).keys_only)
        if of_table is None or in_range == _COUNTED:
            return max(in_range, _planned(connection, keys))
        return _counted(connection, keys)

    def until(self, upper: Any) -> Source[T]:  # noqa: ANN401
        """Give the same rows without those behind *upper*."""
        return _BoundedRows(self._walk.ending_at(_parts(upper, self._walk.keys)))

    def identity(self) -> dict[str, Json]:
        """Describe the key, whose values cursors are."""
        return {
            "kind": "rows",
            "key": [f"{key.name} {'desc' if key.descending else 'asc'}" for key in self._walk.keys],
            "types": [_type_name(key.column) for key in self._walk.keys],
        }

    def _fetch(
        self, statement: Select[Any], values: dict[str, Any], execute: Callable[..., Result[Any]]
    ) -> tuple[Sequence[Any], Sequence[Row[Any]]]:
        """Give the items, which are what the select asks for, and the rows, which have the key as well."""
        walk = self._walk
        result = execute(statement, values)
        if self._needs_unique:
            result = result.unique()
        elif walk.width > 1 and len(result.keys()) > walk.width:
            frozen = result.freeze()
            return frozen().columns(*range(walk.width)).all(), frozen().all()
        try:
            found = result.all()
        except InvalidRequestError as error:
            if "unique()" not in str(error) or self._needs_unique:
                raise
            # Collections are loaded by a join, so that a row comes once for each member.
            self._needs_unique = True
            return self._fetch(statement, values, execute)
        return ([row[0] for row in found] if walk.width == 1 else found), found

    def _pairs(
        self, items: Sequence[Any], found: Sequence[Row[Any]], positions: Sequence[int]
    ) -> list[tuple[Any, Any]]:
        # In columns and by C code: this is done to every row of every run.
        columns = [[row[position] for row in found] for position in positions]
        if any(None in column for column in columns):
            names = _names(self._walk.keys)
            raise InvalidSource(
                f"a row has NULL in its key ({names}), so there is no way to go on behind it; "
                f"use the key of a table that every row has, or leave such rows out with .where(...is_not(None))"
            )
        cursors: Iterable[Any] = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        return list(zip(items, cursors, strict=True))


class _BoundedRows(_Rows[T]):
    """The rows up to the one that was the last when the run was planned."""

    def upper(self, session: Session) -> Any:  # noqa: ANN401
        """Give the key of the last row that there is now."""
        connection = session.connection()
        row = connection.execute(self._walk.statements(connection).last).one_or_none()
        if row is None:
            return None
        return row[0] if len(self._walk.keys) == 1 else tuple(row)


def _sampled_keys(walk: _Walk, connection: Connection, parts: int) -> list[tuple[Any, ...]]:
    """
    Give the keys of some rows from all over a walk, in its order.

    A sample of the table tells which rows are looked up by their unique columns: what the select joins and leaves out
    is so as it is, and no more is read of it. Where it leaves nearly all of them out, the table's own rows are taken.
    """
    own = _own_unique(walk.keys)
    names = [column.key for column in own]
    table = walk.keys[0].column.table
    rows, is_whole = Sample(connection, own).take(min(max(_SAMPLE, _SAMPLES_PER_PART * parts), _LARGEST_SAMPLE))
    columns = [stored(table.c[name], connection.dialect.name) for name in names]
    found = _looked_up(walk, connection, columns, rows)
    plain = None if len(found) >= parts or is_whole else _without_filters(walk)
    return found if plain is None else _looked_up(plain, connection, columns, rows)


def _without_filters(walk: _Walk) -> _Walk | None:
    """Give the rows of the table that has the key, in the same range; None where several tables have it."""
    if any(key.column.table is not walk.keys[0].column.table for key in walk.keys):
        return None
    selected = select(*(key.column for key in walk.keys))
    return _Walk(selected, walk.keys, for_update=False, after=walk.after, until=walk.until)


def _counted(connection: Connection, keys: Select[Any]) -> int:
    """Count rows, and no more of them than tells that they are many."""
    counted = select(func.count()).select_from(keys.order_by(None).limit(_COUNTED).subquery())
    return int(connection.execute(counted).scalar_one())


def _keys_within(walk: _Walk, connection: Connection, parts: int) -> list[tuple[Any, ...]]:
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
    within = [key.compared == value for key, value in zip(keys[:at], _bound(keys[:at], begin[:at]), strict=True)]
    wanted = _LOOKED_UP_PER_PART * parts
    values = values_between(connection, lead.compared, *bounds, within=within, wanted=wanted)
    values = values[::-1] if lead.descending else values
    # From each value on, and not from the beginning as well: of two bounds, SQLite may take the wrong one.
    base = walk.without_beginning().statements(connection).keys_only.where(*within)
    ordered = base.order_by(None).order_by(*(key.order for key in keys)).limit(1)
    chosen = [values[len(values) * number // parts] for number in range(1, parts)] if len(values) >= parts else []
    cuts: list[tuple[Any, ...]] = []
    for value in chosen:
        row = connection.execute(ordered.where(lead.not_before(value))).one_or_none()
        # A value need not be there, and the database may order them in another way than they were counted.
        if row is not None and _has(walk, row, connection):
            cuts.append(tuple(row))
            walk = walk.starting_behind(cuts[-1])
    # Cuts, and not a sample: the last one stands for what comes behind it.
    return [*cuts, tuple(end)] if cuts else []


def _has(walk: _Walk, key: Sequence[Any], connection: Connection) -> bool:
    """Tell whether a walk has a row with this key, in the order of the database."""
    statements = walk.statements(connection)
    here = [each.compared == value for each, value in zip(statements.keys, _bound(statements.keys, key), strict=True)]
    return connection.execute(statements.keys_only.where(*here).order_by(None).limit(1)).first() is not None


def _last_key(statements: _Statements, connection: Connection) -> tuple[Any, ...] | None:
    row = connection.execute(statements.last).one_or_none()
    return None if row is None else tuple(row)


def _looked_up(
    walk: _Walk, connection: Connection, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]]
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


def _own_unique(keys: Sequence[_Key]) -> list[Column[Any]]:
    """Give the fewest columns of the key's table that tell its rows apart and are in the key."""
    table = _table_of(keys[0].column)
    if table is None:
        return []
    within = [list(columns) for columns in _unique_sets(table) if _is_within(columns, keys, table)]
    return min(within, key=len)


def _behind(keys: Sequence[_Key], values: Sequence[Any]) -> ColumnElement[bool]:
    """Say that a row comes after the one with these key values."""
    if len(keys) == 1:
        return keys[0].behind(values[0])
    if len({key.descending for key in keys}) == 1:
        here = tuple_(*(key.compared for key in keys))
        there = tuple_(*values)
        return here < there if keys[0].descending else here > there
    return _behind_by_cases(keys, values)


def _behind_by_cases(keys: Sequence[_Key], values: Sequence[Any]) -> ColumnElement[bool]:
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


def _bound(keys: Sequence[_Key], values: Sequence[Any]) -> tuple[ColumnElement[Any], ...]:
    return tuple(bindparam(None, value, type_=key.type) for key, value in zip(keys, values, strict=True))


def _parts(cursor: Any, keys: Sequence[_Key]) -> tuple[Any, ...]:  # noqa: ANN401
    if len(keys) == 1:
        return (cursor,)
    if not isinstance(cursor, tuple | list) or len(cursor) != len(keys):
        raise InvalidSource(f"{cursor!r} is not a cursor of rows with the key {_names(keys)}")
    return tuple(cursor)


def _check_comparable(key: _Key, value: object) -> None:
    """Refuse a number for text and text for a number, which some databases compare all the same, and find nothing."""
    for kind, python in ((Integer, int), (String, str)):
        is_of_kind = isinstance(key.column.type, kind) and not isinstance(key.column.type, EnumType)
        if is_of_kind and not isinstance(value, python):
            raise InvalidSource(
                f"{value!r} is not a cursor of rows with the key {key.name}, whose values are {python.__name__}"
            )


def _key(part: KeyPart) -> _Key:
    descending = False
    expression = part
    if isinstance(part, UnaryExpression) and part.modifier in (operators.desc_op, operators.asc_op):
        descending = part.modifier is operators.desc_op
        expression = part.element
    column = expression.__clause_element__() if hasattr(expression, "__clause_element__") else expression
    if not isinstance(column, Column) or _table_of(column) is None:
        raise InvalidSource(
            f"the key {part} is not a column of a table; give one, such as key=User.id, or a tuple of several"
        )
    if isinstance(column.type, Float):
        raise InvalidSource(
            f"the key {part} is a floating-point number, which does not come back from a cursor exactly; "
            f"use the primary key, or another key of whole numbers, text, moments or decimals"
        )
    return _Key(expression=expression, column=column, descending=descending, compared=expression)


def _table_of(column: Column[Any]) -> Table | None:
    table: object = column.table
    while isinstance(table, AliasedReturnsRows):
        table = table.element
    return table if isinstance(table, Table) else None


def _check_select(selected: object) -> None:
    if not isinstance(selected, Select):
        raise InvalidSource(
            f"rows() takes a select, such as rows(select(User), key=User.id): got {type(selected).__name__}"
        )
    clauses = {
        "LIMIT": selected._limit_clause,  # noqa: SLF001  the only way to ask
        "OFFSET": selected._offset_clause,  # noqa: SLF001  the only way to ask
        "FETCH": selected._fetch_clause,  # noqa: SLF001  the only way to ask
        "ORDER BY": selected._order_by_clauses or None,  # noqa: SLF001  the only way to ask
    }
    present = [name for name, clause in clauses.items() if clause is not None]
    if present:
        raise InvalidSource(
            f"the select has {' and '.join(present)}, but batchkit orders by the key and takes chunk after chunk; "
            f"leave it out (the direction is the key's: key=User.id.desc(), part of the rows is .where(...))"
        )
    if selected._for_update_arg is not None:  # noqa: SLF001  the only way to ask
        raise InvalidSource(
            "the select locks its rows by with_for_update(), and all of them when they are counted; leave that out and "
            "give rows(..., for_update=True), which locks the rows of one chunk at a time"
        )


def _check_keys(keys: Sequence[_Key]) -> None:
    if not keys:
        raise InvalidSource("the key is empty; give a column, such as key=User.id, or a tuple of several")
    table = _table_of(keys[0].column)
    for key in keys:
        if key.column.nullable and not key.column.primary_key:
            raise InvalidSource(
                f"the key {key.name} may be NULL, and such rows would be skipped; "
                f"use a column that is NOT NULL, such as the primary key{_suggestion(table)}"
            )
    if table is None or not any(_is_within(columns, keys, table) for columns in _unique_sets(table)):
        raise InvalidSource(
            f"the key {_names(keys)} is not unique, so rows with equal keys would be skipped where chunks meet; "
            f"add the primary key behind it{_suggestion(table, keys)}"
        )


def _is_within(columns: Sequence[Column[Any]], keys: Sequence[_Key], table: Table) -> bool:
    names = {key.column.name for key in keys if _table_of(key.column) is table}
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


def _suggestion(table: Table | None, keys: Sequence[_Key] = ()) -> str:
    if table is None or not table.primary_key.columns:
        return ""
    columns = [key.name for key in keys] + [f"{table.name}.{column.name}" for column in table.primary_key.columns]
    return f": key=({', '.join(dict.fromkeys(columns))})"


def _is_one_table(selected: Select[Any]) -> bool:
    froms = selected.get_final_froms()
    if len(froms) != 1:
        return False
    table: object = froms[0]
    while isinstance(table, AliasedReturnsRows):
        table = table.element
    return isinstance(table, Table)


def _positions(selected: Select[Any], keys: Sequence[_Key]) -> list[int] | None:
    columns = list(selected.selected_columns)
    found = [next((at for at, column in enumerate(columns) if column is key.compared), None) for key in keys]
    return None if None in found else [at for at in found if at is not None]


def _check_neighbours(keys: Sequence[_Key], cursors: Sequence[Any]) -> None:
    for before, after in itertools.pairwise(cursors):
        if before == after:
            raise InvalidSource(
                f"two rows of the select have the same key ({_names(keys)}: {before!r}), so one would be skipped where "
                f"chunks meet; add the key of the joined table to key=(...), or use .distinct() or an EXISTS instead "
                f"of the join"
            )


def _names(keys: Sequence[_Key]) -> str:
    return ", ".join(key.name for key in keys)


def _attributes(descriptions: Sequence[Any], keys: Sequence[_Key]) -> tuple[str, ...]:
    """Give the names under which objects of the select have the key, where they are objects and have it."""
    entity = descriptions[0].get("entity")
    if entity is None or descriptions[0]["expr"] is not entity:
        return ()
    mapper = inspect(entity).mapper
    try:
        return tuple(mapper.get_property_by_column(_column_of_table(key.column)).key for key in keys)
    except UnmappedColumnError:
        # The key is another table's.
        return ()


def _column_of_table(column: Column[Any]) -> Column[Any]:
    """Give the table's own column for one of an alias."""
    table = _table_of(column)
    return column if table is None else table.c[column.key]


def _type_name(column: Column[Any]) -> str:
    try:
        return str(column.type.python_type.__name__)
    except NotImplementedError:
        return type(column.type).__name__


class _Explain(Executable, ClauseElement):
    """The planner's word on a select."""

    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _compile_explain(element: _Explain, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.statement, **options)}"


@compiles(_Explain, *_MYSQL)
def _compile_explain_on_mysql(element: _Explain, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return f"EXPLAIN {compiler.process(element.statement, **options)}"


def _count_on_postgresql(connection: Connection, counted: Select[Any], keys: Select[Any]) -> int:
    usual = connection.exec_driver_sql("SHOW statement_timeout").scalar_one()
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_COUNT_SECONDS}s'")
            number = int(connection.execute(counted).scalar_one())
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{usual}'")
            return number
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _QUERY_CANCELED:
            raise
    return Estimate(_planned(connection, keys))


def _count_on_mysql(connection: Connection, counted: Select[Any], keys: Select[Any]) -> int:
    # Only MySQL's dialect has it.
    is_mariadb = getattr(connection.dialect, "is_mariadb", False)
    variable = "@@SESSION.max_statement_time" if is_mariadb else "@@SESSION.max_execution_time"
    limit = _COUNT_SECONDS if is_mariadb else int(_COUNT_SECONDS * 1000)
    usual = connection.exec_driver_sql(f"SELECT {variable}").scalar_one()
    connection.exec_driver_sql(f"SET {variable} = {limit}")
    try:
        return int(connection.execute(counted).scalar_one())
    except DBAPIError as error:
        if error.orig is None or error.orig.args[:1] not in [(number,) for number in _MYSQL_TOO_LONG]:
            raise
    finally:
        # No transaction takes it back. A connection that is gone has gone with it.
        if not connection.invalidated:
            connection.exec_driver_sql(f"SET {variable} = {usual}")
    return Estimate(_planned(connection, keys))


def _planned(connection: Connection, keys: Select[Any]) -> int:
    """Say how many rows the planner expects; 0 where the database has none that says so."""
    if connection.dialect.name == "postgresql":
        plan = connection.execute(_Explain(keys)).scalar_one()
        parsed = json.loads(plan) if isinstance(plan, str) else plan
        return int(parsed[0]["Plan"]["Plan Rows"])
    if connection.dialect.name in _MYSQL:
        tables = connection.execute(_Explain(keys)).mappings().all()
        # The tables of a join, each with what it is read for each row of those before it; not those of subqueries.
        return math.prod(int(table["rows"] or 0) for table in tables if table["id"] == 1)
    return 0
