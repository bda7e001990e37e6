"""What differs between the databases, and nothing else does."""

from __future__ import annotations

import enum
import math
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from batchkit.errors import DatabaseUnavailable, InvalidDatabase
from batchkit.store.addresses import shown
from batchkit.store.pipelining import PREPARED_IN_VAIN, Pipelining, idle_timeout

# Any: the drivers' connections and cursors have no common type.
DriverConnection = Any

_POSTGRES_AT_LEAST = (12,)
_SQLITE_AT_LEAST = (3, 35, 0)
_SQLITE_BUSY_SECONDS = 30.0
_SQLITE_LOOK_MILLISECONDS = 10


class Fault(enum.Enum):
    """What an error of the database means for the work."""

    #: the connection is gone; whether the last COMMIT happened must be asked on another
    LOST = "lost"
    #: the same work may succeed in a moment: a deadlock, a serialization failure, a lock that was waited for
    TRANSIENT = "transient"
    #: nothing can be written: a read-only file, a standby
    READ_ONLY = "read-only"


@dataclass(frozen=True, slots=True)
class Server:
    """What a database says of itself."""

    name: str
    version: tuple[int, ...]
    #: the oldest that batchkit is made for
    at_least: tuple[int, ...]
    #: why nothing can be written there
    refuses_writes: str | None = None
    #: how SQLite keeps what is not committed
    journal: str | None = None
    #: the tables whose rows a rollback leaves as they are; MySQL has engines of that kind
    without_transactions: tuple[str, ...] = ()
    #: whether MySQL's replication takes no changes made under READ COMMITTED
    logs_statements: bool = False
    #: whether MySQL cuts a text that is too long for its column
    cuts_texts: bool = False
    #: the character set of the connection, where it lacks characters
    narrow_charset: str | None = None


class Dialect(Protocol):
    """How one kind of database is spoken to where SQLAlchemy does not say it."""

    #: whether one writer at a time holds the whole database
    has_one_writer: bool
    #: whether an UPDATE can bring something back
    has_returning: bool
    #: whether `pipelining` may give something
    can_pipeline: bool

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Give what `create_engine` needs for *url*."""
        ...

    def check(self, driver: DriverConnection) -> None:
        """Refuse a connection that cannot keep the promises."""
        ...

    def server(self, driver: DriverConnection, schema: str | None) -> Server:
        """Ask the server what it is and how it is set, where the tables are in *schema*."""
        ...

    def begin(self, driver: DriverConnection, *, lock_wait: float | None, idle: float) -> None:
        """
        Begin a transaction that may write, with READ COMMITTED and in one round trip.

        A lock is waited for *lock_wait* seconds at most; None leaves that to the user's settings. A session that is
        idle for *idle* seconds inside the transaction is ended by the database, so that a stopped process does not
        keep its locks for ever.
        """
        ...

    def pipelining(self, driver: DriverConnection, *, is_ours: bool) -> Pipelining | None:
        """
        Give what sends several statements in one round trip on *driver*, which is held; None where nothing can.

        *is_ours* says that its engine was made by `engine_options`.
        """
        ...

    def restore(self, driver: DriverConnection) -> None:
        """Take back what `begin` set beyond its transaction, before others get the connection."""
        ...

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell whether the transaction is still open."""
        ...

    def attempting(self, tx: Connection) -> AbstractContextManager[object]:
        """Let a statement be refused, in the block, without losing the transaction that is open on *tx*."""
        ...

    def abandon(self, driver: DriverConnection, *, cut: Engine | None) -> None:
        """
        End what the server still does for a connection that is about to be thrown away.

        *cut* is the connection's engine where we broke off in the middle, so that the server may know nothing of it.
        """
        ...

    def migrating(self, tx: Connection, schema: str | None) -> AbstractContextManager[None]:
        """Let one process at a time migrate the tables in *schema*, which is made if it is not there."""
        ...

    def fault(self, error: BaseException) -> Fault | None:
        """Say what *error* means, or None where it is no fault of the database."""
        ...


#: Taken for the length of a migration, so that two processes do not migrate at once; any fixed number will do.
_MIGRATION_LOCK = 7_246_801_553
_MIGRATION_SECONDS = 3600

#: libpq's PQTRANS_ACTIVE: a statement was sent, and its reply has not come.
_ACTIVE = 1
_CANCEL_SECONDS = 1.0


class Postgres:
    """PostgreSQL through psycopg 3."""

    has_one_writer = False
    has_returning = True
    can_pipeline = True

    def __init__(self) -> None:
        self._pipelining = Pipelining()

    def engine_options(self, url: URL) -> dict[str, Any]:  # noqa: ARG002
        """Give what `create_engine` needs for *url*."""
        keepalives = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        # No prepared statements: behind pgbouncer in transaction mode they are on another connection the next time.
        connect = {"connect_timeout": 10, "prepare_threshold": None, **keepalives}
        return {"pool_pre_ping": True, "connect_args": connect}

    def check(self, driver: DriverConnection) -> None:
        """Refuse an engine in AUTOCOMMIT: each statement of a user's session would commit by itself."""
        if driver.autocommit:
            raise _autocommit()

    def server(self, driver: DriverConnection, schema: str | None) -> Server:  # noqa: ARG002
        """Ask for the version, and for what would make every chunk fail."""
        number, read_only, is_standby = driver.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('default_transaction_read_only'), "
            "pg_is_in_recovery()"
        ).fetchone()
        refusals = {"default_transaction_read_only is on": read_only == "on", "it is a standby": is_standby}
        return Server(
            name="PostgreSQL",
            version=(number // 10_000, number % 10_000),
            at_least=_POSTGRES_AT_LEAST,
            refuses_writes=next((why for why, is_so in refusals.items() if is_so), None),
        )

    def begin(self, driver: DriverConnection, *, lock_wait: float | None, idle: float) -> None:
        """Begin with one simple query of several statements, hence one round trip; never as a prepared statement."""
        settings = idle_timeout(idle)
        if lock_wait is not None:
            settings += f"; SET LOCAL lock_timeout = {int(lock_wait * 1000)}"
        driver.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {settings}", prepare=False)

    def pipelining(self, driver: DriverConnection, *, is_ours: bool) -> Pipelining | None:
        """Use libpq's pipeline mode, where psycopg has it."""
        if not self._pipelining.fits(driver):
            return None
        self._pipelining.hold(driver, is_ours=is_ours)
        return self._pipelining

    def restore(self, driver: DriverConnection) -> None:
        """Prepare statements as before; SET LOCAL has ended with its transaction."""
        self._pipelining.let_go(driver)

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell by libpq's transaction status: idle means that somebody ended it."""
        return bool(driver.info.transaction_status != 0)

    def attempting(self, tx: Connection) -> AbstractContextManager[object]:
        """Set a savepoint: after an error nothing else is left of a transaction."""
        return tx.begin_nested()

    def abandon(self, driver: DriverConnection, *, cut: Engine | None) -> None:  # noqa: ARG002
        """Cancel the statement in flight: the server would work on it, with its locks, until it wants to reply."""
        if driver.info.transaction_status == _ACTIVE:
            driver.cancel_safe(timeout=_CANCEL_SECONDS)

    @contextmanager
    def migrating(self, tx: Connection, schema: str | None) -> Iterator[None]:
        """Lock for the length of the transaction only, so that it is safe behind pgbouncer too."""
        tx.execute(text("SET LOCAL lock_timeout = 0"))
        tx.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        if schema:
            tx.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
        yield

    def fault(self, error: BaseException) -> Fault | None:
        """Go by SQLSTATE (PostgreSQL manual, appendix A); a lost connection often has none."""
        import psycopg  # noqa: PLC0415  an extra: only users of PostgreSQL have it

        original = _original(error)
        if not isinstance(original, psycopg.Error):
            return None
        state = original.sqlstate
        if state is None:
            return Fault.LOST if isinstance(original, psycopg.OperationalError | psycopg.InterfaceError) else None
        if state[:2] == "08" or state in {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}:
            return Fault.LOST
        if state == "25006":
            return Fault.READ_ONLY
        is_prepared_in_vain = state in PREPARED_IN_VAIN or (state == "0A000" and "cached plan" in str(original))
        return Fault.TRANSIENT if is_prepared_in_vain or state in {"40001", "40P01", "55P03", "53300"} else None


class Sqlite:
    """SQLite through the standard library's driver."""

    has_one_writer = True
    has_returning = True
    can_pipeline = False

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Give what `create_engine` needs for *url*: a file, since other processes must see it."""
        if not url.database or url.database == ":memory:" or "mode=memory" in url.database:
            raise InvalidDatabase(
                "a SQLite database in memory is seen by one connection only and dies with the process; "
                "give a file: sqlite:///batchkit.db"
            )
        return {"connect_args": {"timeout": _SQLITE_BUSY_SECONDS}}

    def check(self, driver: DriverConnection) -> None:
        """Refuse a library without RETURNING; switch the file to WAL, so that readers do not wait for the writer."""
        import sqlite3  # noqa: PLC0415  some Pythons are built without it

        if sqlite3.sqlite_version_info < _SQLITE_AT_LEAST:
            raise InvalidDatabase(
                f"SQLite {sqlite3.sqlite_version} lacks UPDATE ... RETURNING; batchkit needs "
                f"{'.'.join(map(str, _SQLITE_AT_LEAST))} or newer"
            )
        gives_up_at = time.monotonic() + _SQLITE_BUSY_SECONDS
        while True:
            # The change to WAL needs the file for itself, and does not wait for it.
            try:
                driver.execute("PRAGMA journal_mode=WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > gives_up_at:
                    raise
                time.sleep(_SQLITE_LOOK_MILLISECONDS / 1000)
            else:
                break

    def server(self, driver: DriverConnection, schema: str | None) -> Server:  # noqa: ARG002
        """Ask whether the file is in WAL: where it cannot be, `check` has asked in vain."""
        import sqlite3  # noqa: PLC0415  some Pythons are built without it

        (journal,) = driver.execute("PRAGMA journal_mode").fetchone()
        return Server(
            name="SQLite", version=sqlite3.sqlite_version_info, at_least=_SQLITE_AT_LEAST, journal=str(journal)
        )

    def begin(self, driver: DriverConnection, *, lock_wait: float | None, idle: float) -> None:  # noqa: ARG002
        """
        Take the write lock at once: a transaction that has read fails without waiting when it writes later.

        SQLite's own waiting looks every 0.1 s after a while, and would miss the moments at which a busy slice leaves
        the lock free; we look more often.
        """
        import sqlite3  # noqa: PLC0415  some Pythons are built without it

        gives_up_at = time.monotonic() + (_SQLITE_BUSY_SECONDS if lock_wait is None else lock_wait)
        driver.execute(f"PRAGMA busy_timeout = {_SQLITE_LOOK_MILLISECONDS}")
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > gives_up_at:
                    raise
            else:
                break
        # The function's own statements wait for nothing: the lock is had.
        driver.execute(f"PRAGMA busy_timeout = {int(_SQLITE_BUSY_SECONDS * 1000)}")

    def pipelining(self, driver: DriverConnection, *, is_ours: bool) -> None:
        """Give nothing: there is no network."""

    def restore(self, driver: DriverConnection) -> None:
        """Do nothing: the busy timeout is at its usual value again."""

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell by SQLite's own autocommit flag."""
        return bool(driver.in_transaction)

    def attempting(self, tx: Connection) -> AbstractContextManager[object]:  # noqa: ARG002
        """
        Do nothing: a statement that is refused leaves the transaction as it was.

        A savepoint would do harm: the standard library's driver begins no transaction for it, so that its release
        would be a COMMIT.
        """
        return nullcontext()

    def abandon(self, driver: DriverConnection, *, cut: Engine | None) -> None:  # noqa: ARG002
        """Roll back: closed with a cursor that somebody still has, a connection lives on with its lock."""
        driver.rollback()

    def migrating(self, tx: Connection, schema: str | None) -> AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing: the transaction is the only one that writes."""
        return nullcontext()

    def fault(self, error: BaseException) -> Fault | None:
        """Go by the text where the driver has no code: the standard library tells codes from Python 3.11 on."""
        import sqlite3  # noqa: PLC0415  some Pythons are built without it

        original = _original(error)
        if not isinstance(original, sqlite3.OperationalError):
            return None
        if "is locked" in str(original):
            return Fault.TRANSIENT
        return Fault.READ_ONLY if "readonly" in str(original) else None


#: The connection is gone, or is not to be had, says the client: PyMySQL gives 0 for one that it has closed already.
_MYSQL_CLIENT_LOST = frozenset({0, 2002, 2003, 2006, 2013, 2014, 2026, 2027, 2055})
#: A server says so that goes down, or ends a session that was killed or idle for too long.
_MYSQL_SERVER_LEAVES = frozenset({1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 3032, 3168, 3169, 4031})
#: A lock that was waited for (the transaction is still open), a deadlock (it is not), too many connections or
#: transactions, a node of Galera that is not ready, a row that changed since it was read, and a commit that another
#: member of the group was ahead of.
_MYSQL_TRANSIENT = frozenset({1020, 1040, 1047, 1203, 1205, 1206, 1213, 1226, 1637, 3101, 3572})
#: A commit failed for any reason; a cluster names a deadlock there, which its members had with each other.
_MYSQL_COMMIT_FAILED = 1180
_MYSQL_READ_ONLY = frozenset({1792, 1836})
#: A server option forbids the statement; --read-only is one of several.
_MYSQL_OPTION_PREVENTS = 1290
_MYSQL_NO_SUCH_SAVEPOINT = 1305
_MYSQL_DEADLOCK = 1213
#: As for PostgreSQL, in seconds; what a system has no name for stays as it is.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
#: CLIENT_FOUND_ROWS and SERVER_STATUS_IN_TRANS of the protocol.
_FOUND_ROWS = 2
_IN_TRANSACTION = 1


_MARIADB_AT_LEAST = (10, 6)
_MYSQL_AT_LEAST = (8, 0)
_MYSQL_SETTINGS = ("read_only", "log_bin", "binlog_format", "sql_mode", "character_set_client")
_MYSQL_WITHOUT_TRANSACTIONS = """
SELECT table_name FROM information_schema.tables JOIN information_schema.engines USING (engine)
WHERE table_schema = coalesce(%s, database()) AND table_type = 'BASE TABLE' AND coalesce(transactions, '') <> 'YES'
ORDER BY table_name
"""


class MySql:
    """MySQL and MariaDB through PyMySQL."""

    has_one_writer = False
    # MariaDB has it for DELETE and INSERT, MySQL not at all.
    has_returning = False
    can_pipeline = False

    def __init__(self) -> None:
        # Session variables have no SET LOCAL: what is set on which connection, until `restore`.
        self._settings: WeakKeyDictionary[DriverConnection, dict[str, int]] = WeakKeyDictionary()

    def engine_options(self, url: URL) -> dict[str, Any]:  # noqa: ARG002
        """Give what `create_engine` needs for *url*."""
        # PyMySQL has no option for it, and Linux would wait two hours for a server that is cut off.
        events = [(_look_whether_the_server_lives, "connect")]
        return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}, "pool_events": events}

    def check(self, driver: DriverConnection) -> None:
        """Refuse another driver, AUTOCOMMIT, and counts without the rows that an UPDATE found but did not change."""
        if not hasattr(driver, "server_status"):
            raise InvalidDatabase(
                f"{type(driver).__module__} does not tell whether its transaction is still open, so a chunk that was "
                f"torn could not be seen; use PyMySQL: mysql+pymysql://user@host/name"
            )
        if driver.get_autocommit():
            raise _autocommit()
        if not driver.client_flag & _FOUND_ROWS:
            raise InvalidDatabase(
                "the engine's connections count changed rows, not found ones, so an update that changes nothing would "
                "look like a lost lease; connect with client_flag=pymysql.constants.CLIENT.FOUND_ROWS, as SQLAlchemy "
                "does by itself"
            )

    def server(self, driver: DriverConnection, schema: str | None) -> Server:
        """Ask for the version, for settings that differ from the usual, and for tables of the wrong kind."""
        with driver.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            (said,) = cursor.fetchone()
            # Not @@name: a variable that a version does not have would be an error.
            cursor.execute("SHOW VARIABLES WHERE variable_name IN %s", [_MYSQL_SETTINGS])
            settings = dict(cursor.fetchall())
            cursor.execute(_MYSQL_WITHOUT_TRANSACTIONS, [schema])
            tables = tuple(name for (name,) in cursor.fetchall())
        is_mariadb = "MariaDB" in said
        charset = settings.get("character_set_client")
        return Server(
            name="MariaDB" if is_mariadb else "MySQL",
            version=tuple(int(part) for part in re.findall(r"\d+", said)[:2]),
            at_least=_MARIADB_AT_LEAST if is_mariadb else _MYSQL_AT_LEAST,
            refuses_writes="read_only is on" if settings.get("read_only", "OFF") != "OFF" else None,
            without_transactions=tables,
            logs_statements=settings.get("log_bin") == "ON" and settings.get("binlog_format") == "STATEMENT",
            cuts_texts="STRICT_" not in settings.get("sql_mode", ""),
            narrow_charset=None if charset == "utf8mb4" else charset,
        )

    def begin(self, driver: DriverConnection, *, lock_wait: float | None, idle: float) -> None:
        """
        Begin, with session variables where others are needed than before; the next chunk needs the same.

        Only MariaDB ends idle transactions: on MySQL a stopped process keeps its locks until its connection breaks.
        """
        wanted = {} if lock_wait is None else {"innodb_lock_wait_timeout": max(1, math.ceil(lock_wait))}
        if "MariaDB" in driver.get_server_info():
            wanted["idle_transaction_timeout"] = max(1, math.ceil(idle))
        if wanted != self._settings.get(driver, {}):
            self.restore(driver)
        if wanted and driver not in self._settings:
            kept = [f"@batchkit_{name} = @@SESSION.{name}" for name in wanted]
            driver.query(f"SET {', '.join(kept + [f'@@SESSION.{name} = {value}' for name, value in wanted.items()])}")
            self._settings[driver] = wanted
        driver.query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        driver.query("START TRANSACTION")

    def pipelining(self, driver: DriverConnection, *, is_ours: bool) -> None:
        """Give nothing: the protocol of MySQL waits for each answer."""

    def restore(self, driver: DriverConnection) -> None:
        """Set the session variables back to what they were."""
        settings = self._settings.pop(driver, None)
        if settings:
            driver.query(f"SET {', '.join(f'@@SESSION.{name} = @batchkit_{name}' for name in settings)}")

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """
        Ask the server, whose every good reply tells it.

        The last reply will not do: a deadlock ends the transaction, and an error does not tell. If the function went
        on after one, what it wrote before would be lost and the checkpoint committed.
        """
        driver.ping(reconnect=False)
        return bool(driver.server_status & _IN_TRANSACTION)

    def attempting(self, tx: Connection) -> AbstractContextManager[object]:  # noqa: ARG002
        """Do nothing: a statement that is refused leaves the transaction as it was."""
        return nullcontext()

    def abandon(self, driver: DriverConnection, *, cut: Engine | None) -> None:
        """Kill its session: the server notices that a client is gone only when it wants to reply."""
        # Not after the server broke off: it may have started anew, and have given the number to somebody else.
        if cut is not None and not driver.open:
            with cut.connect() as other:
                other.exec_driver_sql(f"KILL {int(driver.thread_id())}")

    @contextmanager
    def migrating(self, tx: Connection, schema: str | None) -> Iterator[None]:
        """Take a named lock of this connection, since each DDL statement commits; it ends with the connection too."""
        name = f"batchkit {_MIGRATION_LOCK} {schema or tx.engine.url.database}"[:64]
        asked = tx.execute(text("SELECT get_lock(:name, :seconds)"), {"name": name, "seconds": _MIGRATION_SECONDS})
        if asked.scalar() != 1:
            raise DatabaseUnavailable(
                shown(tx.engine.url),
                f"another process has been migrating its tables for {_MIGRATION_SECONDS} s; see what it waits for",
            )
        try:
            if schema:
                tx.execute(text(f"CREATE DATABASE IF NOT EXISTS `{schema}`"))
            yield
        finally:
            # With its connection the lock is gone too.
            if not tx.invalidated:
                tx.execute(text("SELECT release_lock(:name)"), {"name": name})

    def fault(self, error: BaseException) -> Fault | None:
        """Go by the error's number."""
        import pymysql  # noqa: PLC0415  an extra: only users of MySQL have it

        original = _original(error)
        if not isinstance(original, pymysql.Error):
            return None
        number = _mysql_number(original)
        # Asked for the state of a connection that it has closed, PyMySQL has neither number nor class for it.
        is_closed = number is None and type(original) in (pymysql.Error, pymysql.InterfaceError)
        if is_closed or number in _MYSQL_CLIENT_LOST | _MYSQL_SERVER_LEAVES:
            return Fault.LOST
        if number in _MYSQL_READ_ONLY or (number == _MYSQL_OPTION_PREVENTS and "read" in str(original)):
            return Fault.READ_ONLY
        is_deadlock_of_cluster = number == _MYSQL_COMMIT_FAILED and "deadlock" in str(original)
        if number in _MYSQL_TRANSIENT or is_deadlock_of_cluster or _lost_its_savepoint_to_a_deadlock(original):
            return Fault.TRANSIENT
        return None


def _look_whether_the_server_lives(driver: DriverConnection, _: object) -> None:
    wire = getattr(driver, "_sock", None)
    if not isinstance(wire, socket.socket) or wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _mysql_number(error: BaseException) -> int | None:
    return error.args[0] if error.args and isinstance(error.args[0], int) else None


def _lost_its_savepoint_to_a_deadlock(error: BaseException) -> bool:
    """Tell whether *error* came of rolling back to a savepoint which had gone with the whole transaction."""
    seen: BaseException | None = error if _mysql_number(error) == _MYSQL_NO_SUCH_SAVEPOINT else None
    while seen is not None and _mysql_number(seen) != _MYSQL_DEADLOCK:
        seen = seen.__context__
    return seen is not None


def dialect_named(name: str) -> Dialect:
    """
    Give the dialect that SQLAlchemy calls *name*.

    Raises:
        InvalidDatabase: batchkit does not know it.
    """
    if name == "postgresql":
        return Postgres()
    if name == "sqlite":
        return Sqlite()
    if name in ("mysql", "mariadb"):
        return MySql()
    raise InvalidDatabase(f"batchkit keeps its tables in PostgreSQL, MySQL, MariaDB or SQLite, not in {name}")


def _autocommit() -> InvalidDatabase:
    return InvalidDatabase(
        "the engine is in AUTOCOMMIT, so a chunk's writes could not commit together with its checkpoint; "
        'give batchkit an engine without isolation_level="AUTOCOMMIT"'
    )


def _original(error: BaseException) -> BaseException | None:
    # Users wrap errors in their own; the chain is followed to the driver's.
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and not isinstance(seen, DBAPIError) and id(seen) not in known:
        known.add(id(seen))  # `raise error from error` makes a ring of the chain
        seen = seen.__cause__
    return seen.orig if isinstance(seen, DBAPIError) else error
