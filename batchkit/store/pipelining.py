"""Several statements in one round trip, by PostgreSQL's pipeline mode: the checkpoint, its COMMIT, the next BEGIN."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect, Engine, Float
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

if TYPE_CHECKING:
    # An extra: only users of PostgreSQL have it.
    from psycopg import Connection as Driver
    from psycopg import RawCursor
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.waiting import Ready, Wait

    Conversation = Generator[Wait, Ready | int, list[PGresult]]

#: What a statement says of itself behind which psycopg has the server drop all that is prepared.
_DROPPING = re.compile("DROP|ALTER|ROLLBACK|DISCARD ALL|DEALLOCATE").match
#: A function that has it dropped more often does so in each chunk, and it is not worth while to prepare it again.
_MOST_DROPS = 3
#: How often psycopg sees a statement before it prepares it.
_PREPARE_THRESHOLD = 5
#: A prepared statement that is not there, or is there already: somebody stands between us and the server after all.
PREPARED_IN_VAIN = frozenset({"26000", "42P05"})

#: PostgreSQL's number of `double precision`, in pg_type.
_FLOAT = 701
#: A round trip that takes so long is worth what Python does to save it.
FAR_SECONDS = 0.0003
#: The error by which a guard keeps the COMMIT behind its statement from being made.
_DIVISION_BY_ZERO = "22012"


class Numbered:
    """A statement compiled once, with numbered parameters, as the server itself takes them."""

    def __init__(self, statement: Executable, engine: Engine) -> None:
        make: Callable[..., Dialect] = type(engine.dialect)
        dialect = make(paramstyle="numeric_dollar")
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)  # noqa: S101  SQLAlchemy types it as its base
        self._compiled = compiled
        self._order = compiled.positiontup or []
        self._constants = compiled.construct_params(_check=False)
        # Only tests' clocks have values that must be asked for each time.
        self._is_constant = not any(bind.callable for bind in compiled.binds.values())
        self.text = str(compiled).encode()
        # The server finds out what the others are; of a sum of two that it knows nothing of it cannot.
        are_floats = [isinstance(compiled.binds[name].type, Float) for name in self._order]
        #: the types of its parameters, where they are said, as numbers and by their names
        self.types = [_FLOAT if is_float else 0 for is_float in are_floats]
        self.type_names = ", ".join("double precision" if is_float else "unknown" for is_float in are_floats).encode()
        #: what it is called where it is prepared
        self.name = f"batchkit_{blake2b(self.text, digest_size=8).hexdigest()}".encode()

    def values(self, values: Mapping[str, object]) -> list[object]:
        """Put *values* into the order of the parameters."""
        constants = self._constants if self._is_constant else self._compiled.construct_params(_check=False)
        named = {**constants, **values}
        return [named[name] for name in self._order]


@dataclass(frozen=True, slots=True)
class Trip:
    """What came of a statement and the COMMIT behind it."""

    #: what the statement brought back; None where its guard has refused, and nothing is committed
    row: tuple[Any, ...] | None
    #: what the statement has raised: nothing is committed
    refused: Exception | None = None
    #: what the COMMIT has raised
    not_committed: Exception | None = None

    @property
    def is_committed(self) -> bool:
        """Whether all is well."""
        return self.row is not None and self.not_committed is None


@dataclass(slots=True)
class _Wire:
    """What is known of one connection, for as long as it is open."""

    #: whether nobody stands between us and the server, so that statements may be prepared
    is_direct: bool
    #: what is to be taken back when it is let go of: its threshold, and its kind of cursor
    usual: tuple[int | None, type[Any]] | None = None
    #: how long a round trip has taken at the least, in seconds
    round_trip: float = math.inf
    #: the statements that are known to be prepared
    prepared: set[bytes] = field(default_factory=set)
    #: how often what was prepared was dropped, since it is held
    drops: int = 0
    #: what the next statement takes along
    convoy: Convoy | None = None


class Pipelining:
    """
    Sends statements together, on connections of psycopg in its autocommit mode.

    Nothing here changes what the server does: the statements run one after the other, and once one has failed those
    behind it do not run. So what must stop the COMMIT must be an error.
    """

    def __init__(self) -> None:
        self._wires: WeakKeyDictionary[Driver, _Wire] = WeakKeyDictionary()
        self._cursors: dict[type[Any], type[Any]] = {}

    @staticmethod
    def fits(driver: Any) -> bool:  # noqa: ANN401  some driver's connection
        """Tell whether *driver* can do it: a connection of psycopg 3, with the client library of PostgreSQL 14."""
        try:
            import psycopg  # noqa: PLC0415  an extra
        except ImportError:
            return False
        return isinstance(driver, psycopg.Connection) and psycopg.capabilities.has_pipeline()

    def hold(self, driver: Driver, *, is_ours: bool) -> None:
        """
        Have statements prepared on a connection, where there is nobody between us and the server.

        A pooler, such as pgbouncer, gives each transaction another connection of the server's, on which what was
        prepared before is not there. It has no process at the server, so it tells clients of another. What psycopg
        prepares on a connection that is not *is_ours*, made as we make them, is for its owner to say.
        """
        wire = self._wires.get(driver)
        if wire is None:
            (pid,) = driver.execute("SELECT pg_backend_pid()", prepare=False).fetchone() or (0,)
            wire = self._wires[driver] = _Wire(is_direct=pid == driver.info.backend_pid)
        if wire.usual is None:
            # Else a function has closed its connection, and nobody let go of it.
            wire.usual = driver.prepare_threshold, driver.cursor_factory
            driver.cursor_factory = self._cursor_like(driver.cursor_factory)
        wire.drops = 0
        if is_ours and wire.is_direct and driver.prepare_threshold is None:
            driver.prepare_threshold = _PREPARE_THRESHOLD

    def let_go(self, driver: Driver) -> None:
        """Take back what `hold` has changed."""
        wire = self._wires.get(driver)
        if wire is not None and wire.usual is not None:
            driver.prepare_threshold, driver.cursor_factory = wire.usual
            wire.usual = None

    def send(self, driver: Driver, statement: Numbered, values: Mapping[str, object], *, begins: float | None) -> Trip:
        """
        Send a statement and the COMMIT behind it.

        With *begins*, a transaction is chained to it: with its isolation level, and with so many seconds to be idle.
        """
        behind = [b"COMMIT"] if begins is None else _chained(begins)
        is_prepared = self._prepare(driver, statement)
        pgconn, encoding = driver.pgconn, driver.info.encoding
        sent = [_written(value, encoding) for value in statement.values(values)]
        with driver.lock:
            try:
                pgconn.enter_pipeline_mode()
                if is_prepared:
                    pgconn.send_query_prepared(statement.name, sent)
                else:
                    pgconn.send_query_params(statement.text, sent, param_types=statement.types)
                for text in behind:
                    pgconn.send_query_params(text, None)
                pgconn.pipeline_sync()
                results = driver.wait(_conversation(pgconn))
                pgconn.exit_pipeline_mode()
            except BaseException:
                # Whatever is still under way would be taken for the answer to what is sent next.
                driver.close()
                raise
        return self._trip(driver, results)

    def is_direct(self, driver: Driver) -> bool:
        """Whether nobody stands between us and the server, who would have the connection back behind each COMMIT."""
        return self._wires[driver].is_direct

    def took(self, driver: Driver, seconds: float) -> None:
        """Take note of how long a round trip has taken."""
        wire = self._wires[driver]
        wire.round_trip = min(wire.round_trip, seconds)

    def is_far(self, driver: Driver) -> bool:
        """Whether a round trip takes longer than what a `Convoy` costs."""
        return FAR_SECONDS <= self._wires[driver].round_trip < math.inf

    def forget(self, driver: Driver) -> None:
        """Take note of a statement at which psycopg may drop all that is prepared, ours too."""
        wire = self._wires[driver]
        if wire.prepared:
            wire.prepared.clear()
            wire.drops += 1

    def _prepare(self, driver: Driver, statement: Numbered) -> bool:
        wire = self._wires[driver]
        if not wire.is_direct or wire.drops > _MOST_DROPS:
            return False
        if statement.name not in wire.prepared:
            name = statement.name.decode()
            known = driver.execute("SELECT 1 FROM pg_prepared_statements WHERE name = %s", [name], prepare=False)
            if known.fetchone() is None:
                driver.execute(
                    b"PREPARE %b (%b) AS %b" % (statement.name, statement.type_names, statement.text), prepare=False
                )
            wire.prepared.add(statement.name)
        return True

    def leading(self, driver: Driver, convoy: Convoy | None) -> None:
        """Have the next statement on a connection take *convoy* along, or none any more."""
        self._wires[driver].convoy = convoy

    def go(self, driver: Driver) -> None:
        """Send the convoy of a connection, if there is one."""
        convoy = self._wires[driver].convoy
        if convoy is not None:
            convoy.go()

    def _cursor_like(self, usual: type[Any]) -> type[Any]:
        """Make a kind of cursor that is as the *usual* one, and takes convoys along."""
        if usual in self._cursors:
            return self._cursors[usual]
        pipelining = self

        class Leading(usual):  # type: ignore[misc]
            def execute(self, *args: object, **options: object) -> object:
                driver = self.connection
                convoy = pipelining._wires[driver].convoy
                if convoy is None:
                    super().execute(*args, **options)
                else:
                    convoy.lead(lambda: super(Leading, self).execute(*args, **options))
                if _DROPPING(self.statusmessage or ""):
                    pipelining.forget(driver)
                return self

            # These have no statement of their own in front of which it could be sent.
            def executemany(self, *args: object, **options: object) -> object:
                pipelining.go(self.connection)
                return super().executemany(*args, **options)

            def stream(self, *args: object, **options: object) -> object:
                pipelining.go(self.connection)
                return super().stream(*args, **options)

            def copy(self, *args: object, **options: object) -> object:
                pipelining.go(self.connection)
                return super().copy(*args, **options)

        self._cursors[usual] = Leading
        return Leading

    def _trip(self, driver: Driver, results: list[PGresult]) -> Trip:
        from psycopg.errors import error_from_result  # noqa: PLC0415  an extra
        from psycopg.pq import ExecStatus  # noqa: PLC0415  an extra

        good = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
        for index, result in enumerate(results[:2]):
            if result.status not in good:
                row = _row(results[0]) if index else None
                return self.failed(driver, error_from_result(result, driver.info.encoding), row)
        return Trip(_row(results[0]))

    def failed(self, driver: Driver, error: Exception, row: tuple[str | None, ...] | None) -> Trip:
        """Say what *error* means, after the statement has brought *row* back, or none."""
        state = getattr(error, "sqlstate", None)
        if state in PREPARED_IN_VAIN:
            self._wires[driver].is_direct = False
            driver.prepare_threshold = None
        if row is not None:
            return Trip(row, not_committed=error)
        return Trip(None, refused=None if state == _DIVISION_BY_ZERO else error)


class _NotCommitted(Exception):
    """What a convoy's statement, or its COMMIT, has raised: kept from SQLAlchemy, which would lay it to the read."""


class Convoy:
    """
    The statement, its COMMIT, the next BEGIN and the first read behind it, in one round trip.

    In the block the first statement that is sent on the connection takes the others along, in front of it.
    """

    def __init__(
        self,
        pipelining: Pipelining,
        driver: Driver,
        statement: Numbered,
        values: Mapping[str, object],
        *,
        begins: float,
    ) -> None:
        self._pipelining = pipelining
        self._driver = driver
        self._statement = statement
        self._values = values
        self._begins = begins
        self._usual: Any = None
        #: what came of the statement and its COMMIT; None where they were not sent
        self.trip: Trip | None = None

    def __enter__(self) -> None:
        self._pipelining.leading(self._driver, self)
        self._usual = self._driver.server_cursor_factory
        self._driver.server_cursor_factory = _behind(self._usual, self)

    def __exit__(self, *_: object) -> None:
        self._driver.server_cursor_factory = self._usual
        self._pipelining.leading(self._driver, None)

    def go(self) -> Trip:
        """Say what came of the statement and its COMMIT; where nothing has taken them along, they are sent now."""
        self._pipelining.leading(self._driver, None)
        if self.trip is None:
            self.trip = self._pipelining.send(self._driver, self._statement, self._values, begins=self._begins)
        return self.trip

    def lead(self, execute: Callable[[], object]) -> None:
        """Send what is there and let *execute* send the statement behind it; later ones go alone."""
        self._pipelining.leading(self._driver, None)
        from psycopg import RawCursor  # noqa: PLC0415  an extra
        from psycopg.rows import tuple_row  # noqa: PLC0415  an extra

        moved, committed, settled = (RawCursor(self._driver, row_factory=tuple_row) for _ in range(3))
        commit, settings = _chained(self._begins)
        try:
            with self._driver.pipeline():
                moved.execute(self._statement.text, self._statement.values(self._values))
                committed.execute(commit)
                settled.execute(settings)
                execute()
        except Exception as error:
            self.trip = self._judged(error, moved, committed)
            if self.trip.is_committed:
                raise
            raise _NotCommitted from error
        self.trip = Trip(moved.fetchone())

    def _judged(self, error: Exception, moved: RawCursor, committed: RawCursor) -> Trip:
        row = moved.fetchone() if moved.pgresult is not None and moved.pgresult.ntuples else None
        if committed.statusmessage == "COMMIT":
            return Trip(row)
        return self._pipelining.failed(self._driver, error, row)


def _behind(usual: type[Any], convoy: Convoy) -> Any:  # noqa: ANN401  psycopg wants a class, and calls it
    def make(*args: object, **options: object) -> object:
        convoy.go()
        return usual(*args, **options)

    return make


def _chained(begins: float) -> list[bytes]:
    """Commit, and begin the next transaction: it has the isolation level of the last, but not its settings."""
    return [b"COMMIT AND CHAIN", idle_timeout(begins).encode()]


def idle_timeout(seconds: float) -> str:
    """Have a session that is idle for so long inside the transaction ended."""
    return f"SET LOCAL idle_in_transaction_session_timeout = {int(seconds * 1000)}"


def _conversation(pgconn: PGconn) -> Conversation:
    """Send what is to be sent, and read the answers up to the last; `Connection.wait` waits for the socket."""
    from psycopg.pq import ExecStatus  # noqa: PLC0415  an extra
    from psycopg.waiting import Ready, Wait  # noqa: PLC0415  an extra

    results: list[PGresult] = []
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            if (yield Wait.R):
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)


def _row(result: PGresult) -> tuple[str | None, ...]:
    values = [result.get_value(0, column) for column in range(result.nfields)]
    return tuple(None if value is None else value.decode() for value in values)


def _written(value: object, encoding: str) -> bytes | None:
    if value is None:
        return None
    text = str(value)
    if "\0" in text:
        # It would end the text there.
        message = "PostgreSQL keeps no text with the character NUL"
        raise ValueError(message)
    return text.encode(encoding)
