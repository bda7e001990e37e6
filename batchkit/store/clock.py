"""The database's wall clock at the moment of the statement: the only clock that decides who holds what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import DateTime, Float, String, bindparam, literal
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

_SQLITE_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
#: SQLAlchemy gives MariaDB a name of its own only where the URL does.
_MYSQL = ("mysql", "mariadb")


class UtcTime(TypeDecorator[datetime]):
    """
    A moment, always with its zone.

    SQLite keeps text of one fixed length, so that text order is time order. MySQL keeps UTC without saying so: its
    TIMESTAMP would be turned into the session's zone and back, and ends in 2038.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type in the database."""
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(String(26) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401
        """Turn a moment into what the driver takes."""
        if value is None:
            return None
        if dialect.name in _MYSQL:
            return value.astimezone(timezone.utc).replace(tzinfo=None)
        return value.astimezone(timezone.utc).strftime(_SQLITE_FORMAT) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401
        """Turn what the driver gives into a moment in UTC."""
        if value is None:
            return None
        if dialect.name in _MYSQL:
            value = value.replace(tzinfo=timezone.utc)
        elif dialect.name == "sqlite":
            value = datetime.strptime(value, _SQLITE_FORMAT).replace(tzinfo=timezone.utc)
        moment: datetime = value.astimezone(timezone.utc)
        return moment


class Moment(FunctionElement[datetime]):
    """The present moment, *seconds* later."""

    name = "batchkit_moment"
    type = UtcTime()
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[float]) -> None:
        super().__init__(seconds)


@compiles(Moment, "postgresql")
def _on_postgresql(element: Moment, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    # Never now(): that is the start of the transaction, and a chunk may be longer than its lease.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(Moment, "sqlite")
def _on_sqlite(element: Moment, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))"


@compiles(Moment, *_MYSQL)
def _on_mysql(element: Moment, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    # The start of the statement. SYSDATE() would be the moment itself, but there is none in UTC.
    seconds = compiler.process(element.clauses, **options)
    return f"(utc_timestamp(6) + INTERVAL round(({seconds}) * 1000000) MICROSECOND)"


class OneMoment(Moment):
    """The present moment, *seconds* later: the same for all rows of a statement, so that an index can be searched."""

    name = "batchkit_one_moment"
    inherit_cache = True


@compiles(OneMoment, "postgresql")
def _one_on_postgresql(element: OneMoment, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    # clock_timestamp() is another moment for each row, and no index can find what is before that. Elsewhere it is none.
    return f"(SELECT {_on_postgresql(element, compiler, **options)})"


class Later(FunctionElement[datetime]):
    """The later of two moments."""

    name = "batchkit_later"
    type = UtcTime()
    inherit_cache = True


@compiles(Later, "postgresql")
def _later_on_postgresql(element: Later, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"greatest({compiler.process(element.clauses, **options)})"


@compiles(Later, "sqlite")
def _later_on_sqlite(element: Later, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    first, second = (compiler.process(each, **options) for each in element.clauses)
    return f"max(coalesce({first}, {second}), {second})"


@compiles(Later, *_MYSQL)
def _later_on_mysql(element: Later, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    first, second = (compiler.process(each, **options) for each in element.clauses)
    return f"greatest(coalesce({first}, {second}), {second})"


class Clock:
    """
    Gives moments of the database's clock as SQL.

    Tests give *shift*, which is asked for seconds to add each time a statement is executed.
    """

    def __init__(self, shift: Callable[[], float] | None = None) -> None:
        self._shift = shift

    def shift(self) -> float:
        """Give the seconds that tests add."""
        return 0.0 if self._shift is None else self._shift()

    def now(self) -> ColumnElement[datetime]:
        """Give the moment of the statement."""
        return self.after(literal(0.0, Float))

    def after(self, seconds: ColumnElement[float]) -> ColumnElement[datetime]:
        """Give the moment of the statement, *seconds* later."""
        return Moment(self._shifted(seconds))

    def one(self, seconds: float = 0.0) -> ColumnElement[datetime]:
        """
        Give one moment for all rows of a SELECT, *seconds* later, by which an index can be searched.

        Not for the guard of an UPDATE: that is judged again when a lock was waited for, and by a newer moment.
        """
        return OneMoment(self._shifted(literal(seconds, Float)))

    def _shifted(self, seconds: ColumnElement[float]) -> ColumnElement[float]:
        if self._shift is None:
            return seconds
        shift: ColumnElement[float] = bindparam("clock_shift", callable_=self._shift, type_=Float, unique=True)
        return seconds + shift
