"""Rows of a table, walked by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import Connection, Engine, Result, Row, Select
from sqlalchemy.exc import InvalidRequestError

from batchkit.errors import InvalidSource
from batchkit.sources.base import Source
from batchkit.sources.tables.counting import count
from batchkit.sources.tables.keys import (
    KeyPart,
    check_comparable,
    check_keys,
    check_neighbours,
    key_of,
    names_of,
    parts_of,
    type_name,
)
from batchkit.sources.tables.splitting import cuts, weigh
from batchkit.sources.tables.walk import LIMIT, Walk

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

T = TypeVar("T")


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
    keys = tuple(key_of(part) for part in (key if isinstance(key, tuple) else (key,)))
    _check_select(selected)
    check_keys(keys)
    walk = Walk(selected, keys, for_update=for_update)
    return _Rows(walk) if follow else _BoundedRows(walk)


class _Rows(Generic[T]):
    """The rows, wherever they end."""

    def __init__(self, walk: Walk) -> None:
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
        values: dict[str, Any] = {LIMIT: limit + extra}
        statements = walk.statements(bind)
        if after is None:
            statement = statements.first
        else:
            statement = statements.next
            values.update(zip(statements.names, parts_of(after, walk.keys), strict=True))
        items, found = self._fetch(statement, values, execute)
        pairs = self._pairs(items, found, statements.positions)
        if extra:
            check_neighbours(walk.keys, [cursor for _, cursor in pairs])
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
        return count(connection, self._walk.statements(connection).keys_only)

    def behind(self, after: Any) -> Source[T]:  # noqa: ANN401
        """Give the same rows without those up to the one with the key *after*."""
        parts = parts_of(after, self._walk.keys)
        for key, part in zip(self._walk.keys, parts, strict=True):
            check_comparable(key, part)
        return type(self)(self._walk.starting_behind(parts))

    def split(self, parts: int, session: Session) -> list[Any]:
        """Cut them between rows that are spread over them, such as the select has them, in the order of the key."""
        found = cuts(self._walk, session.connection(), parts)
        return [cut[0] if len(self._walk.keys) == 1 else cut for cut in found]

    def weigh(self, session: Session) -> int:
        """Say about how many rows there are, in a moment."""
        return weigh(self._walk, session.connection())

    def until(self, upper: Any) -> Source[T]:  # noqa: ANN401
        """Give the same rows without those behind *upper*."""
        return _BoundedRows(self._walk.ending_at(parts_of(upper, self._walk.keys)))

    def identity(self) -> dict[str, Json]:
        """Describe the key, whose values cursors are."""
        return {
            "kind": "rows",
            "key": [f"{key.name} {'desc' if key.descending else 'asc'}" for key in self._walk.keys],
            "types": [type_name(key.column) for key in self._walk.keys],
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
            names = names_of(self._walk.keys)
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
