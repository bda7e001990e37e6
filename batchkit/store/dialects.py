"""What differs between the databases, and nothing else does."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from batchkit.errors import InvalidDatabase

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


class Dialect(Protocol):
    """How one kind of database is spoken to where SQLAlchemy does not say it."""

    #: whether one writer at a time holds the whole database
    has_one_writer: bool

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Give what `create_engine` needs for *url*."""
        ...

    def check(self, driver: DriverConnection) -> None:
        """Refuse a connection that cannot keep the promises."""
        ...

    def server(self, driver: DriverConnection) -> Server:
        """Ask the server what it is and how it is set."""
        ...

    def begin(self, driver: DriverConnection, *, lock_wait: float | None, idle: float) -> None:
        """
        Begin a transaction that may write, with READ COMMITTED and in one round trip.

        A lock is waited for *lock_wait* seconds at most; None leaves that to the user's settings. A session that is
        idle for *idle* seconds inside the transaction is ended by the database, so that a stopped process does not
        keep its locks for ever.
        """
        ...

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell whether the transaction is still open, from what the driver knows."""
        ...

    def abandon(self, driver: DriverConnection) -> None:
        """End what the server still does for a connection that is about to be thrown away."""
        ...

    def fault(self, error: BaseException) -> Fault | None:
        """Say what *error* means, or None where it is no fault of the database."""
        ...


#: libpq's PQTRANS_ACTIVE: a statement was sent, and its reply has not come.
_ACTIVE = 1
_CANCEL_SECONDS = 1.0


class Postgres:
    """PostgreSQL through psycopg 3."""

    has_one_writer = False

    def engine_options(self, url: URL) -> dict[str, Any]:  # noqa: ARG002
        """Give what `create_engine` needs for *url*."""
        keepalives = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        # No prepared statements: behind pgbouncer in transaction mode they are on another connection the next time.
        connect = {"connect_timeout": 10, "prepare_threshold": None, **keepalives}
        return {"pool_pre_ping": True, "connect_args": connect}

    def check(self, driver: DriverConnection) -> None:
        """Refuse an engine in AUTOCOMMIT: each statement of a user's session would commit by itself."""
        if driver.autocommit:
            raise InvalidDatabase(
                "the engine is in AUTOCOMMIT, so a chunk's writes could not commit together with its checkpoint; "
                'give batchkit an engine without isolation_level="AUTOCOMMIT"'
            )

    def server(self, driver: DriverConnection) -> Server:
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
        settings = f"SET LOCAL idle_in_transaction_session_timeout = {int(idle * 1000)}"
        if lock_wait is not None:
            settings += f"; SET LOCAL lock_timeout = {int(lock_wait * 1000)}"
        driver.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {settings}", prepare=False)

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell by libpq's transaction status: idle means that somebody ended it."""
        return bool(driver.info.transaction_status != 0)

    def abandon(self, driver: DriverConnection) -> None:
        """Cancel the statement in flight: the server would work on it, with its locks, until it wants to reply."""
        if driver.info.transaction_status == _ACTIVE:
            driver.cancel_safe(timeout=_CANCEL_SECONDS)

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
        return Fault.TRANSIENT if state in {"40001", "40P01", "55P03", "53300"} else None


class Sqlite:
    """SQLite through the standard library's driver."""

    has_one_writer = True

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

    def server(self, driver: DriverConnection) -> Server:
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

    def is_in_transaction(self, driver: DriverConnection) -> bool:
        """Tell by SQLite's own autocommit flag."""
        return bool(driver.in_transaction)

    def abandon(self, driver: DriverConnection) -> None:
        """Roll back: closed with a cursor that somebody still has, a connection lives on with its lock."""
        driver.rollback()

    def fault(self, error: BaseException) -> Fault | None:
        """Go by the text where the driver has no code: the standard library tells codes from Python 3.11 on."""
        import sqlite3  # noqa: PLC0415  some Pythons are built without it

        original = _original(error)
        if not isinstance(original, sqlite3.OperationalError):
            return None
        if "is locked" in str(original):
            return Fault.TRANSIENT
        return Fault.READ_ONLY if "readonly" in str(original) else None


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
    raise InvalidDatabase(f"batchkit keeps its tables in PostgreSQL or SQLite, not in {name}")


def _original(error: BaseException) -> BaseException | None:
    # Users wrap errors in their own; the chain is followed to the driver's.
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and not isinstance(seen, DBAPIError) and id(seen) not in known:
        known.add(id(seen))  # `raise error from error` makes a ring of the chain
        seen = seen.__cause__
    return seen.orig if isinstance(seen, DBAPIError) else error
