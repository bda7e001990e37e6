"""The connection that a slice holds, and the guard on its transactions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

from batchkit.errors import ChunkTorn
from batchkit.store.database import Database, driver_of
from batchkit.store.pipelining import Convoy, Numbered, Pipelining, Trip

#: On a database with one writer the lock is left free this long ...
_BREATHER_SECONDS = 0.05
#: ... whenever one slice has held it for this long in all: else outside writers never find it free.
_BREATHER_EVERY_SECONDS = 1.0


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
            self._pipelining = database.dialect.pipelining(driver_of(connection), is_ours=database.is_engine_ours)
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
        self._driver = driver_of(connection)
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
