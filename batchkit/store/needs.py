"""What PostgreSQL says of its replicas, its transactions and its dead rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    Interval,
    MetaData,
    Table,
    Text,
    extract,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, OID, REGCLASS, TIMESTAMP
from sqlalchemy.sql.elements import ColumnElement

# The server's own views, never made by us.
_VIEWS = MetaData(schema="pg_catalog")
_REPLICATION = Table(
    "pg_stat_replication",
    _VIEWS,
    Column("application_name", Text),
    Column("state", Text),
    Column("replay_lag", Interval),
)
_ACTIVITY = Table(
    "pg_stat_activity",
    _VIEWS,
    Column("pid", Integer),
    Column("datname", Text),
    Column("application_name", Text),
    Column("backend_type", Text),
    Column("xact_start", TIMESTAMP(timezone=True)),
)
_TABLES = Table(
    "pg_stat_user_tables",
    _VIEWS,
    Column("relid", OID),
    Column("n_dead_tup", BigInteger),
    Column("n_live_tup", BigInteger),
)


class Replica(NamedTuple):
    """How far a replica is behind; None where the server does not say, or not to this user."""

    name: str | None
    state: str | None
    seconds: float | None


class OpenTransaction(NamedTuple):
    """A transaction of another session, and for how long it has been open."""

    pid: int
    application: str
    seconds: float


class DeadRows(NamedTuple):
    """How many rows of a table are dead, and how many are not, as the server estimates them."""

    dead: int
    live: int


def replicas(connection: Connection) -> list[Replica]:
    """Read how far each replica is behind in replaying, the slowest first."""
    seen = _REPLICATION.c
    lag = _seconds(seen.replay_lag)
    statement = select(seen.application_name, seen.state, lag).order_by(lag.desc().nulls_last())
    return [Replica(name, state, seconds) for name, state, seconds in connection.execute(statement)]


def oldest_transaction(connection: Connection) -> OpenTransaction | None:
    """Find the transaction in this database that has been open longest; not ours, nor one of the server's own."""
    seen = _ACTIVITY.c
    statement = (
        select(seen.pid, seen.application_name, _seconds(func.clock_timestamp() - seen.xact_start))
        .where(
            seen.datname == func.current_database(),
            seen.backend_type == "client backend",
            seen.xact_start.is_not(None),
            seen.pid != func.pg_backend_pid(),
        )
        .order_by(seen.xact_start)
        .limit(1)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else OpenTransaction(*row)


def dead_rows(connection: Connection, table: str | Table) -> DeadRows | None:
    """Read how many rows of a table, and of its partitions, are dead; None where there is no such table."""
    name = table if isinstance(table, str) else connection.dialect.identifier_preparer.format_table(table)
    relation = func.to_regclass(name, type_=REGCLASS)
    tree = func.pg_partition_tree(relation).table_valued(Column("relid", REGCLASS))
    seen = _TABLES.c
    statement = select(func.sum(seen.n_dead_tup), func.sum(seen.n_live_tup)).where(
        or_(seen.relid == relation, seen.relid.in_(select(tree.c.relid)))
    )
    dead, live = connection.execute(statement).one()
    return None if dead is None else DeadRows(int(dead), int(live))


def _seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    return extract("epoch", interval).cast(DOUBLE_PRECISION)
