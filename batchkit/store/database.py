"""One database: its engine, its transactions, and the connection that a slice holds."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

from batchkit.errors import ChunkTorn, DatabaseUnavailable, InvalidDatabase, WriteInsideChunk
from batchkit.store.addresses import shown, shown_text
from batchkit.store.changes import Changes
from batchkit.store.clock import Clock
from batchkit.store.dialects import Dialect, Fault, dialect_named
from batchkit.store.pipelining import Convoy, Numbered, Pipelining, Trip
from batchkit.store.tables import Tables, tables

_PORTS = {"postgresql": 5432, "mysql": 3306}
#: Where drivers let a URL say the address behind the question mark.
_ADDRESS_IN_QUERY = ("host", "port", "dbname", "service", "unix_socket")
_LOCK_WAIT_SECONDS = 5.0
_ONE_WRITER_LOCK_WAIT_SECONDS = 30.0
#: The drivers that we work with, where a URL names none.
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
#: On a database with one writer the lock is left free this long ...
_BREATHER_SECONDS = 0.05
#: ... whenever one slice has held it for this long in all: else outside writers never find it free.
_BREATHER_EVERY_SECONDS = 1.0


class Database:
    """
    The database that holds batchkit's tables.

    All transactions are begun here, with a statement of our own on a connection in the driver's autocommit mode, so
    that isolation and timeouts cost no round trip and a transaction ended behind our back is seen. Nothing is
    listened to on the user's engine.
    """

    def __init__(self, database: str | URL | Engine, *, schema: str | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        #: what transactions have changed that is to be told of
        self.changes = Changes()
        self.schema = schema
        self.tables: Tables = tables(schema)
        self.is_engine_ours = not isinstance(database, Engine)
        self.engine = database if isinstance(database, Engine) else _engine_for(database)
        self.dialect: Dialect = dialect_named(self.engine.dialect.name)
        self._is_checked = False
        #: the threads that are inside a chunk's transaction
        self.writing_threads: set[int] = set()
        if isinstance(database, Engine):
            self.dialect.engine_options(database.url)
        _drop_pool_in_children(self.engine)

    @property
    def url(self) -> str:
        """The address without its secrets, for messages."""
        return shown(self.engine.url)

    def is_on(self, engine: Engine) -> bool:
        """Tell whether *engine* leads to this database: to the same address, whatever its driver and user are."""
        return engine is self.engine or _address(engine.url) == _address(self.engine.url)

    def check(self, connection: Connection) -> None:
        """
        Refuse a connection of the user's that is in no transaction.

        Raises:
            InvalidDatabase: each of its statements commits by itself.
        """
        if not self.dialect.has_one_writer:
            self.dialect.check(_driver(connection))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """
        Open a short transaction that may write, and commit it at the end of the block.

        Raises:
            DatabaseUnavailable: the database cannot be reached or written.
        """
        if self.dialect.has_one_writer and threading.get_ident() in self.writing_threads:
            raise WriteInsideChunk(self.url)
        with self._told_of() as connection:
            yield connection

    @contextmanager
    def _told_of(self) -> Iterator[Connection]:
        """Tell of what a transaction has changed, once it is committed and its connection is given back."""
        tx: Connection | None = None
        is_committed = False
        try:
            with self._written() as tx:
                yield tx
            is_committed = True
        finally:
            noted = [] if tx is None else self.changes.taken(tx)
            if is_committed:
                self.changes.committed(noted)

    @contextmanager
    def _written(self) -> Iterator[Connection]:
        wait = _ONE_WRITER_LOCK_WAIT_SECONDS if self.dialect.has_one_writer else _LOCK_WAIT_SECONDS
        try:
            with self.connect() as connection, self._restored(connection), connection.begin():
                try:
                    self.dialect.begin(_driver(connection), lock_wait=wait, idle=wait * 4)
                except self.driver_error as error:
                    raise self.unavailable(error) from error
                yield connection
        except DBAPIError as error:
            # That of the commit, too: its reply may be what was lost.
            if self.fault(error) in (Fault.LOST, Fault.READ_ONLY):
                raise self.unavailable(error) from error
            raise

    @contextmanager
    def _restored(self, connection: Connection) -> Iterator[None]:
        driver = _driver(connection)
        try:
            yield
        finally:
            self.restore(connection, driver)

    def restore(self, connection: Connection, driver: Any) -> None:  # noqa: ANN401
        """Make *connection* what it was before `Dialect.begin`; where that fails, nobody gets it any more."""
        try:
            self.dialect.restore(driver)
        except self.driver_error:
            connection.invalidate()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        Open a connection on which each statement is a transaction of its own.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        with self.connect() as connection:
            try:
                yield connection
            except DBAPIError as error:
                if self.fault(error) is Fault.LOST:
                    raise self.unavailable(error) from error
                raise

    def connect(self) -> Connection:
        """
        Open a connection whose transactions are begun by `Dialect.begin`.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
            InvalidDatabase: it was opened in a way that cannot keep the promises.
        """
        try:
            connection = self.engine.connect()
        except DBAPIError as error:
            raise self.unavailable(error) from error
        try:
            if not self._is_checked:
                self.dialect.check(_driver(connection))
                self._is_checked = True
            return connection.execution_options(isolation_level="AUTOCOMMIT")
        except (DBAPIError, self.driver_error) as error:
            connection.close()
            raise self.unavailable(error) from error
        except BaseException:
            connection.close()
            raise

    @property
    def driver_error(self) -> type[Exception]:
        """The base of the driver's errors."""
        error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        return error

    def fault(self, error: BaseException) -> Fault | None:
        """Say what *error* means for the work, or None where it is no fault of the database."""
        if isinstance(error, DatabaseUnavailable):
            return self.fault(error.__cause__) if error.__cause__ else None
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Fault.LOST
        return self.dialect.fault(error)

    def unavailable(self, error: BaseException) -> DatabaseUnavailable:
        """Make the error for a database that cannot be used."""
        original = error.orig if isinstance(error, DBAPIError) else error
        text = " ".join(str(original).split())
        mend = (
            "make the file and its folder writable for this user"
            if original is not None and self.fault(original) is Fault.READ_ONLY
            else "see that it runs and that the address is right"
        )
        return DatabaseUnavailable(self.url, f"{text}; {mend}")

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


class Rendered:
    """A statement compiled once to the driver's text, for those that are sent with each chunk."""

    def __init__(self, statement: Executable, engine: Engine) -> None:
        compiled = statement.compile(dialect=engine.dialect)  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)  # noqa: S101  SQLAlchemy types it as its base
        self._compiled = compiled
        self._order = compiled.positiontup
        self._constants = compiled.construct_params(_check=False)
        # Only tests' clocks have values that must be asked for each time.
        self._is_constant = not any(bind.callable for bind in compiled.binds.values())
        self.text = str(compiled)

    def values(self, values: Mapping[str, object]) -> Any:  # noqa: ANN401
        """Put *values* into the driver's form."""
        constants = self._constants if self._is_constant else self._compiled.construct_params(_check=False)
        named = {**constants, **values}
        return named if self._order is None else [named[name] for name in self._order]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What may be sent with the last statement of a transaction: the COMMIT, and what follows it."""

    #: where the next transaction may be begun at once, for how many seconds it may be idle
    begins: float | None = None
    #: reads what the next transaction begins with, by one statement, through this connection; False where that failed
    read: Callable[[], bool] | None = None


class HeldConnection:
    """
    The one connection that a slice holds, and the guard on its transactions.

    The user's function writes through `connection`. Whatever it does to the transaction there, it is committed by
    `commit()` here, whole, or not at all.

    To SQLAlchemy the whole slice is one transaction; the driver is told of the real ones, a chunk each. That is
    quicker, and it tells ours from what the function does: any begin, commit or rollback that SQLAlchemy hears of is
    the function's.
    """

    def __init__(self, database: Database, run_id: str) -> None:
        self._database = database
        self._run_id = run_id
        self._connection: Connection | None = None
        self._driver: Any = None  # Any: the drivers' connections have no common type
        self._is_guarded = False
        self._torn: str | None = None
        self._is_begun = False
        #: for a transaction that the next statement begins, how long it may be idle
        self._idle_when_used: float | None = None
        self._began_at = 0.0
        self._held_seconds = 0.0
        self._pipelining: Pipelining | None = None
        #: where the COMMIT was sent ahead: what it was
        self._committed: Trip | None = None
        #: whether a transaction was begun with it, behind it
        self._is_next_begun = False
        #: whether nothing was sent in that yet, so that `begin` has nothing to do
        self._is_fresh = False
        #: whether the connection was found to be gone
        self.is_lost = False
        #: the wall clock when the transaction began
        self.began_at_epoch = 0.0

    @property
    def connection(self) -> Connection:
        """The connection, in the transaction begun last."""
        if self._connection is None:
            self._open()
        return cast("Connection", self._connection)

    @property
    def is_begun(self) -> bool:
        """Whether a transaction was begun and neither committed nor rolled back."""
        return self._is_begun

    def begin(self, *, idle: float) -> None:
        """
        Begin a transaction; see `Dialect.begin`.

        Raises:
            DatabaseUnavailable: the database cannot be reached, or its lock was not to be had.
        """
        if self._connection is None:
            self._open()
        self._idle_when_used = None
        if not self._is_fresh:
            self._begin(idle)
        self._is_fresh = False
        self._database.writing_threads.add(threading.get_ident())
        self._began_at = time.monotonic()
        self.began_at_epoch = time.time() + self._database.clock.shift()

    def _begin(self, idle: float) -> None:
        began = time.perf_counter()
        try:
            self._database.dialect.begin(self._driver, lock_wait=None, idle=idle)
        except self._database.driver_error as error:
            raise self._database.unavailable(error) from error
        if self._pipelining is not None:
            self._pipelining.took(self._driver, time.perf_counter() - began)
        self._is_begun = True

    def begin_when_used(self, *, idle: float) -> None:
        """Have the next statement that SQLAlchemy sends, or `begin_now`, begin a transaction; until then none is."""
        self._idle_when_used = idle
        if not event.contains(self.connection, "before_cursor_execute", self._on_statement):
            event.listen(self.connection, "before_cursor_execute", self._on_statement)

    def begin_now(self) -> None:
        """Begin the transaction that the next statement would begin, for statements that SQLAlchemy does not see."""
        if self._idle_when_used is not None:
            self.begin(idle=self._idle_when_used)

    def execute(self, statement: Rendered, values: Mapping[str, object]) -> Any:  # noqa: ANN401
        """Send *statement* straight to the driver and give its first row, or None."""
        cursor = self._driver.cursor()
        try:
            cursor.execute(statement.text, statement.values(values))
            return cursor.fetchone()
        finally:
            cursor.close()

    @property
    def commits_ahead(self) -> bool:
        """Whether `execute_and_commit` can be used."""
        return self._pipelining is not None

    @property
    def is_commit_sent(self) -> bool:
        """Whether `commit` has nothing to send, and says what came of what `execute_and_commit` has sent."""
        return self._committed is not None

    @property
    def may_chain(self) -> bool:
        """Whether the next transaction may begin behind a COMMIT: a pooler would never have its connection back."""
        return self._pipelining is not None and self._pipelining.is_direct(self._driver)

    @property
    def is_far(self) -> bool:
        """Whether a round trip takes so long that it is worth while to have the next read travel with the COMMIT."""
        return self._pipelining is not None and self._pipelining.is_far(self._driver)

    def execute_and_commit(
        self, statement: Numbered, values: Mapping[str, object], ahead: Ahead
    ) -> tuple[str | None, ...] | None:
        """
        Send *statement* and the COMMIT in one round trip, and give its row; `commit` says what that has come to.

        None where the statement's guard has refused by a division by zero, and nothing is committed. What is *ahead* is
        sent along: where the next transaction begins with a read, and that fails, it is rolled back, and no more.

        Raises:
            Exception: what the statement was refused with; nothing is committed, and the transaction is still open.
        """
        pipelining = cast("Pipelining", self._pipelining)
        if ahead.read is None or ahead.begins is None:
            trip = pipelining.send(self._driver, statement, values, begins=ahead.begins)
            self._is_fresh = self._is_next_begun = ahead.begins is not None and trip.is_committed
        else:
            trip = self._read_along(pipelining, statement, values, ahead.read, begins=ahead.begins)
        if trip.refused is not None:
            raise trip.refused
        if trip.row is None:
            return None
        self._committed = trip
        return trip.row

    def _read_along(
        self,
        pipelining: Pipelining,
        statement: Numbered,
        values: Mapping[str, object],
        read: Callable[[], bool],
        *,
        begins: float,
    ) -> Trip:
        convoy = Convoy(pipelining, self._driver, statement, values, begins=begins)
        self._is_fresh = self._is_next_begun = True
        with convoy:
            is_read = read()
        trip = convoy.go()
        self._is_fresh = False
        if trip.is_committed and not is_read:
            # It is for the next chunk to find out what is wrong with its read.
            self._is_next_begun = False
            self._undo()
        return trip

    def update(self, statement: Rendered, values: Mapping[str, object]) -> int:
        """Send *statement* straight to the driver and give the number of rows that it found."""
        cursor = self._driver.cursor()
        try:
            cursor.execute(statement.text, statement.values(values))
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def check(self) -> None:
        """
        Refuse to go on if the function ended the transaction.

        Raises:
            ChunkTorn: it did; what it wrote before may be committed or lost, and the chunk must not be counted.
        """
        is_ended = self._is_begun and not self._database.dialect.is_in_transaction(self._driver)
        if self._torn is None and is_ended:
            self._torn = (
                "the function ended the transaction with a statement of its own (COMMIT, DDL, a script), "
                "or went on after an error that had ended it (a deadlock)"
            )
        if self._torn is not None:
            raise self._error(self._torn)

    def commit(self) -> None:
        """Commit. A lost connection raises the driver's error, and whether it happened must be asked elsewhere."""
        committed, self._committed = self._committed, None
        if committed is None:
            self._driver.commit()
        elif committed.not_committed is not None:
            raise committed.not_committed
        self._is_begun, self._is_next_begun = self._is_next_begun, False
        self._breathe()

    def rollback(self) -> None:
        """Roll back; a connection that cannot do even that is thrown away."""
        self._is_begun = self._is_fresh = self._is_next_begun = False
        self._idle_when_used = self._committed = None
        if self._connection is None:
            return
        if self._connection.closed:
            # The function closed it: it was rolled back and is in the pool again, where others may have it already.
            self._forget()
            self._breathe()
            return
        self._undo()
        if self._torn is not None:
            # SQLAlchemy's side of the transaction is spent; the next chunk gets another connection.
            self.close()
        self._breathe()

    def _undo(self) -> None:
        try:
            if self._database.dialect.is_in_transaction(self._driver):
                self._driver.rollback()
                if self._pipelining is not None:
                    self._pipelining.forget(self._driver)
        except self._database.driver_error:
            self.discard()
            self.is_lost = True

    def discard(self, *, is_cut: bool = False) -> None:
        """Throw the connection away; the next use opens another. *is_cut*: we broke off, not the server."""
        driver, connection = self._driver, self._forget()
        if connection is not None:
            if not connection.closed:
                with suppress(Exception):
                    self._database.dialect.abandon(driver, cut=self._database.engine if is_cut else None)
            connection.invalidate()
            connection.close()
        self._breathe()

    def close(self) -> None:
        """Give the connection back to the pool, with nothing left open on it."""
        if self._is_begun:
            self.rollback()
        driver, connection = self._driver, self._forget()
        if connection is not None:
            if not connection.closed:
                self._database.restore(connection, driver)
            if self._database.dialect.has_one_writer:
                # A result that the function has not read to its end would keep its snapshot on the pooled connection,
                # and who gets that next would read the past.
                connection.invalidate()
            connection.close()

    def _open(self) -> None:
        connection = self._database.connect()
        try:
            database = self._database
            self._pipelining = database.dialect.pipelining(_driver(connection), is_ours=database.is_engine_ours)
        except BaseException as error:
            connection.invalidate()
            connection.close()
            if isinstance(error, self._database.driver_error):
                # It has lain in the pool since the server was away.
                raise self._database.unavailable(error) from error
            raise
        connection.begin()
        event.listen(connection, "begin", self._on_begin)
        event.listen(connection, "commit", self._on_commit)
        event.listen(connection, "rollback", self._on_rollback)
        self._connection = connection
        self._driver = _driver(connection)
        self._torn = None
        self._is_guarded = True
        self.is_lost = False

    def _forget(self) -> Connection | None:
        connection, self._connection, self._driver = self._connection, None, None
        self._is_guarded = self._is_begun = self._is_fresh = self._is_next_begun = False
        self._torn = self._idle_when_used = self._committed = self._pipelining = None
        return connection

    def _on_statement(self, *_: object) -> None:
        self.begin_now()

    def _on_begin(self, _: Connection) -> None:
        if self._is_guarded:
            self._torn = self._torn or "the function ended the transaction and began another"
            raise self._error(self._torn)

    def _on_commit(self, _: Connection) -> None:
        if self._is_guarded:
            self._torn = "the function called commit() on the connection"
            raise self._error(self._torn)

    def _on_rollback(self, _: Connection) -> None:
        if self._is_guarded:
            self._torn = "the function rolled the transaction back"

    def _error(self, what: str) -> ChunkTorn:
        return ChunkTorn(
            self._run_id,
            what=what,
            mend=(
                "Leave commit and rollback out of the function; put what may fail into "
                "`with chunk.session.begin_nested():` (or `with chunk.connection.begin_nested():`)"
            ),
        )

    def _breathe(self) -> None:
        self._database.writing_threads.discard(threading.get_ident())
        if not self._database.dialect.has_one_writer or not self._began_at:
            return
        self._held_seconds += time.monotonic() - self._began_at
        self._began_at = 0.0
        if self._held_seconds > _BREATHER_EVERY_SECONDS:
            self._held_seconds = 0.0
            time.sleep(_BREATHER_SECONDS)


def _engine_for(database: str | URL) -> Engine:
    try:
        url = make_url(database)
    except ArgumentError as error:
        raise InvalidDatabase(
            f"{shown_text(str(database))} is not a database URL; it looks like postgresql+psycopg://user@host/name "
            f"or sqlite:///file.db"
        ) from error
    try:
        # Heroku and others write postgres://, which SQLAlchemy does not know.
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        return create_engine(url, **dialect_named(url.get_backend_name()).engine_options(url))
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InvalidDatabase(
            f"the driver for {url.drivername} is not installed ({error}); for PostgreSQL: "
            f"pip install 'batchkit-jobs[postgres]', for MySQL and MariaDB: pip install 'batchkit-jobs[mysql]'"
        ) from error


def _address(url: URL) -> tuple[object, ...]:
    backend = url.get_backend_name()
    if backend == "sqlite":
        return (backend, os.path.realpath(url.database or ""))
    # One protocol: SQLAlchemy has a name of its own for MariaDB.
    backend = "mysql" if backend == "mariadb" else backend
    elsewhere = [url.query.get(name) for name in _ADDRESS_IN_QUERY]
    return (backend, url.host, url.port or _PORTS.get(backend), url.database, *elsewhere)


def _driver(connection: Connection) -> Any:  # noqa: ANN401
    return connection.connection.driver_connection


def _drop_pool_in_children(engine: Engine) -> None:
    """Make forked children open connections of their own: two processes on one socket read each other's replies."""
    if not hasattr(os, "register_at_fork"):
        return
    seen = weakref.ref(engine)

    def drop() -> None:
        inherited = seen()
        if inherited is not None:
            inherited.dispose(close=False)

    after: Callable[[], None] = drop
    os.register_at_fork(after_in_child=after)
