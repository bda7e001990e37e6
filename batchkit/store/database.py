"""One database: its engine, and its short transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from batchkit.errors import DatabaseUnavailable, WriteInsideChunk
from batchkit.store.addresses import shown
from batchkit.store.changes import Changes
from batchkit.store.clock import Clock
from batchkit.store.dialects import Dialect, Fault, dialect_named
from batchkit.store.engines import address_of, drop_pool_in_children, engine_for
from batchkit.store.tables import Tables, tables

_LOCK_WAIT_SECONDS = 5.0
_ONE_WRITER_LOCK_WAIT_SECONDS = 30.0


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
        self.engine = database if isinstance(database, Engine) else engine_for(database)
        self.dialect: Dialect = dialect_named(self.engine.dialect.name)
        self._is_checked = False
        #: the threads that are inside a chunk's transaction
        self.writing_threads: set[int] = set()
        if isinstance(database, Engine):
            self.dialect.engine_options(database.url)
        drop_pool_in_children(self.engine)

    @property
    def url(self) -> str:
        """The address without its secrets, for messages."""
        return shown(self.engine.url)

    def is_on(self, engine: Engine) -> bool:
        """Tell whether *engine* leads to this database: to the same address, whatever its driver and user are."""
        return engine is self.engine or address_of(engine.url) == address_of(self.engine.url)

    def check(self, connection: Connection) -> None:
        """
        Refuse a connection of the user's that is in no transaction.

        Raises:
            InvalidDatabase: each of its statements commits by itself.
        """
        if not self.dialect.has_one_writer:
            self.dialect.check(driver_of(connection))

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
                    self.dialect.begin(driver_of(connection), lock_wait=wait, idle=wait * 4)
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
        driver = driver_of(connection)
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
                self.dialect.check(driver_of(connection))
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


def driver_of(connection: Connection) -> Any:  # noqa: ANN401  the drivers' connections have no common type
    """Give the driver's connection."""
    return connection.connection.driver_connection
