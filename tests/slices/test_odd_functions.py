"""Functions that do odd things; each was found to hurt a run once."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, create_engine, event, insert, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from batchkit import BatchKit, Chunk, RunState, csv_rows, span
from batchkit.errors import WriteInsideChunk
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, ledger, sleep, write


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error", [ValueError("bad \udc80 name"), ValueError("bad \0 byte"), _Mute(), ValueError("x" * 1_000_000)]
)
def test_an_error_whose_text_cannot_be_stored_fails_the_run_all_the_same(
    kit: BatchKit, done: Ledger, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    # pytest-xdist cannot send such a text from process to process, and the log has it.
    monkeypatch.setattr(logging.getLogger("batchkit"), "propagate", False)

    def work(chunk: Chunk[int]) -> None:
        raise error

    run = job(span(3), work).start()
    assert RunState.FAILED == run.state
    assert run.error is not None
    assert run.error.message


def test_an_error_that_is_its_own_cause_fails_the_run(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        error = ValueError("ring")
        raise error from error

    assert RunState.FAILED == job(span(3), work).start().state


def test_a_commit_that_the_database_refuses_fails_the_run_and_keeps_no_lock(kit: BatchKit, done: Ledger):
    with done.engine.begin() as tx:
        tx.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        # MySQL has nothing that only a commit finds out; there the statement is refused.
        deferred = "" if done.engine.dialect.name == "mysql" else "DEFERRABLE INITIALLY DEFERRED"
        tx.execute(
            text(f"CREATE TABLE child (id INTEGER, FOREIGN KEY (id) REFERENCES parent (id) {deferred})"),
        )

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            chunk.connection.execute(text("INSERT INTO child VALUES (7)"))

    engine = kit._store.database.engine  # noqa: SLF001  SQLite checks foreign keys only where it is told to
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
        engine.dispose()
    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.FAILED, 10) == (run.state, run.progress.done)
    assert run.error is not None
    assert "IntegrityError" in run.error.type or "ForeignKey" in run.error.type
    assert list(range(10)) == done.items()


def test_a_session_factory_that_raises_fails_the_run(database_url: str, done: Ledger):
    engine = create_engine(database_url)

    def make(**options: Any) -> Session:
        if "join_transaction_mode" in options:
            raise RuntimeError("no sessions today")
        return Session(engine, **options)

    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=make)) as kit:
        kit.migrate()
        run = job(span(3), write).start()
    assert RunState.FAILED == run.state
    assert "no sessions today" in str(run.error)
    engine.dispose()


def test_a_scoped_session_makes_the_sessions_of_chunks_and_is_left_alone(database_url: str, done: Ledger):
    engine = create_engine(database_url)
    scope = scoped_session(sessionmaker(engine))
    mine = scope()

    def work(chunk: Chunk[int]) -> None:
        assert chunk.session is not mine
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])

    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=scope)) as kit:
        kit.migrate()
        run = job(span(30), work, chunk_size=10).start()
    assert ("exactly-once", RunState.SUCCEEDED) == (run.delivery, run.state), run.error
    assert list(range(30)) == done.items()
    assert scope() is mine
    scope.remove()
    engine.dispose()


def _closed_cursor(chunk: Chunk[int]) -> None:
    cursor = chunk.connection.connection.driver_connection.cursor()  # type: ignore[union-attr]
    cursor.close()
    cursor.execute("SELECT 1")


def _another_server(chunk: Chunk[int]) -> None:
    psycopg.connect("host=/nonexistent dbname=x")


@pytest.mark.parametrize("fault", [_closed_cursor, _another_server])
def test_a_connection_that_only_the_function_lost_is_the_functions_error(kit: BatchKit, done: Ledger, fault: Any):
    calls: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        calls.append(chunk.number)
        fault(chunk)

    run = job(span(3), work).start()
    # The three items together, and the first alone.
    assert (RunState.FAILED, [1, 1]) == (run.state, calls)


def test_a_job_that_starts_a_job_in_its_chunk_works_or_says_why_not(kit: BatchKit, done: Ledger):
    inner = job(span(3), write)
    has_one_writer = kit._store.database.dialect.has_one_writer  # noqa: SLF001  what is expected differs

    def work(chunk: Chunk[int]) -> None:
        inner.start()

    run = job(span(1), work).start()
    if has_one_writer:
        assert (RunState.FAILED, []) == (run.state, done.items())
        assert run.error is not None
        assert WriteInsideChunk.__name__ in run.error.type
    else:
        assert (RunState.SUCCEEDED, [0, 1, 2]) == (run.state, done.items())


def test_a_savepoint_left_open_is_committed_with_the_chunk(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        chunk.session.begin_nested()
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])
        if chunk.number == 2:
            chunk.session.begin_nested()

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 30) == (run.state, run.progress.done), run.error
    assert list(range(30)) == done.items()


def test_a_listener_that_raises_after_the_commit_changes_nothing(database_url: str, done: Ledger):
    class AppSession(Session):
        pass

    engine = create_engine(database_url)

    def fail(_: Session) -> None:
        raise RuntimeError("mail server is down")

    event.listen(AppSession, "after_commit", fail)
    factory = sessionmaker(engine, class_=AppSession)
    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=factory)) as kit:
        kit.migrate()
        run = job(span(30), write, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 30) == (run.state, run.progress.done), run.error
    assert list(range(30)) == done.items()
    engine.dispose()


def test_what_listeners_write_before_the_commit_belongs_to_the_chunk(database_url: str, done: Ledger):
    class AppSession(Session):
        pass

    engine = create_engine(database_url)
    event.listen(AppSession, "before_commit", lambda session: session.execute(insert(ledger), [{"item": -1}]))
    factory = sessionmaker(engine, class_=AppSession)
    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=factory)) as kit:
        kit.migrate()
        job(span(2), write, chunk_size=1).start()
    assert [-1, -1, 0, 1] == done.items()
    engine.dispose()


def test_a_cancel_is_not_lost_when_the_chunk_in_flight_fails(kit: BatchKit, done: Ledger):
    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it

    def work(chunk: Chunk[int]) -> None:
        if chunk.number == 2:
            raise ValueError("bad")

    run = job(span(30), work, chunk_size=10).start()

    def watch(_: Lease) -> None:
        local.run(run.id).cancel()

    with Stop() as stop:
        local.work_run(run.id, stop=stop, watch=watch)
    assert RunState.CANCELLED == run.refresh().state


def test_the_number_of_the_attempt_is_told(kit: BatchKit, done: Ledger):
    seen: list[tuple[int, int]] = []

    def work(chunk: Chunk[int]) -> None:
        seen.append((chunk.number, chunk.attempt))
        if chunk.number == 1 and chunk.attempt < 3:
            raise _transient(chunk.connection)

    run = job(span(2), work, chunk_size=1).start()
    assert RunState.SUCCEEDED == run.state
    assert [(1, 1), (1, 2), (1, 3), (2, 1)] == seen


def _transient(connection: Connection) -> Exception:
    if connection.dialect.name == "sqlite":
        return OperationalError("x", {}, sqlite3.OperationalError("database is locked"))
    if connection.dialect.name == "mysql":
        return OperationalError("x", {}, pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock"))
    return OperationalError("x", {}, psycopg.errors.DeadlockDetected("deadlock detected"))


def test_a_connection_that_the_function_closes_fails_the_run_and_touches_nobody_else(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            chunk.connection.close()

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.FAILED, 10) == (run.state, run.progress.done)
    assert list(range(10)) == done.items()
    assert RunState.SUCCEEDED == job(span(3), write).start().state


@pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete:UserWarning")  # PyMySQL's word on it
def test_a_result_left_half_read_leaves_no_snapshot_behind(kit: BatchKit, done: Ledger):
    kept: list[Any] = []

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        options = {"yield_per": 1}
        result = chunk.connection.execute(text("SELECT item FROM ledger"), execution_options=options)
        result.fetchone()
        kept.append(result)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 30) == (run.refresh().state, run.progress.done)


def test_a_file_that_is_edited_in_place_at_the_same_size_is_not_read_on(kit: BatchKit, done: Ledger, tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("a\n" + "".join(f"{i:04}\n" for i in range(100)))

    def work(chunk: Chunk[dict[str, str]]) -> None:
        with path.open("r+") as stream:
            stream.write("a\n9")
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))

    run = job(lambda: csv_rows(path), work, chunk_size=10).start()
    assert (RunState.FAILED, 10) == (run.state, run.progress.done)
    assert "was changed while it was read" in str(run.error)


def test_a_chunk_that_is_always_too_long_says_so_where_people_look(server_url: str):
    with closing(BatchKit(server_url, queue=LocalQueue())) as kit:
        kit.migrate()
        slow = job(
            span(1),
            lambda chunk: sleep(chunk.connection, 3),
            # Long enough that a busy machine does not lose it before the chunk begins, or by one late renewal.
            lease=2,
            chunk_timeout=0.3,
        )
        run = slow.start()
        with Stop() as stop:
            kit._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  one slice of it
        assert "took longer than chunk_timeout" in str(run.refresh().waiting_reason)
        assert slow.name in JOBS
