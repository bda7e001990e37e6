"""How many rows a select has: counted, or by the word of the planner where that takes too long."""

from __future__ import annotations

import json
import math
from typing import Any

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import Executable

from batchkit.sources.base import Estimate
from batchkit.sources.tables.walk import MYSQL

_COUNT_SECONDS = 5.0
_QUERY_CANCELED = "57014"
#: ER_STATEMENT_TIMEOUT of MariaDB and ER_QUERY_TIMEOUT of MySQL.
_MYSQL_TOO_LONG = (1969, 3024)


def count(connection: Connection, keys: Select[Any]) -> int:
    """Count the rows of *keys*; where that takes a server longer than a few seconds, take its planner's word for it."""
    counted = select(func.count()).select_from(keys.subquery())
    if connection.dialect.name == "postgresql":
        return _count_on_postgresql(connection, counted, keys)
    if connection.dialect.name in MYSQL:
        return _count_on_mysql(connection, counted, keys)
    return int(connection.execute(counted).scalar_one())


def count_up_to(connection: Connection, keys: Select[Any], most: int) -> int:
    """Count the rows of *keys*, and no more than *most* of them."""
    counted = select(func.count()).select_from(keys.order_by(None).limit(most).subquery())
    return int(connection.execute(counted).scalar_one())


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
    return Estimate(planned(connection, keys))


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
    return Estimate(planned(connection, keys))


def planned(connection: Connection, keys: Select[Any]) -> int:
    """Say how many rows the planner expects; 0 where the database has none that says so."""
    if connection.dialect.name == "postgresql":
        plan = connection.execute(_Explain(keys)).scalar_one()
        parsed = json.loads(plan) if isinstance(plan, str) else plan
        return int(parsed[0]["Plan"]["Plan Rows"])
    if connection.dialect.name in MYSQL:
        tables = connection.execute(_Explain(keys)).mappings().all()
        # The tables of a join, each with what it is read for each row of those before it; not those of subqueries.
        return math.prod(int(table["rows"] or 0) for table in tables if table["id"] == 1)
    return 0


class _Explain(Executable, ClauseElement):
    """The planner's word on a select."""

    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain)
def _compile_explain(element: _Explain, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.statement, **options)}"


@compiles(_Explain, *MYSQL)
def _compile_explain_on_mysql(element: _Explain, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return f"EXPLAIN {compiler.process(element.statement, **options)}"
