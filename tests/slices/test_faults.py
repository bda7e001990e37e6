"""Faults of the database that may pass are tried again in any case; each is provoked for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import Engine, text

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.model import RunId
from batchkit.queues import InlineQueue
from batchkit.store import dialects
from tests.servers.locks import anybody_waits
from tests.slices.conftest import Ledger, job, write
from tests.waiting import eventually

_UPDATE = text("UPDATE row_of SET value = value + 1 WHERE name = :name")
# Above the name, and not "other than" it: MariaDB locks what it compares, so the other would wait too early.
_MANY = text("UPDATE row_of SET value = value + 1 WHERE name > :name")


@pytest.fixture
def server_kit(server_url: str) -> Iterator[BatchKit]:
    """Give a kit on each database with a server."""
    with closing(BatchKit(server_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def server_done(server_url: str) -> Iterator[Ledger]:
    """Give the ledger, and rows to fight about."""
    made = Ledger(server_url)
    with made.engine.begin() as tx:
        tx.execute(text("CREATE TABLE row_of (name VARCHAR(9) PRIMARY KEY, value INTEGER NOT NULL)"))
        tx.execute(text("INSERT INTO row_of VALUES (:name, 0)"), [{"name": name} for name in "abcdefgh"])
    yield made
    made.engine.dispose()


def _deadlock(chunk: Chunk[int], engine: Engine) -> None:
    """Lock a, then want what another has locked who wants a, and has changed more, so that this chunk is the victim."""
    chunk.connection.execute(_UPDATE, {"name": "a"})
    with ThreadPoolExecutor(1) as pool, engine.begin() as other, engine.connect() as looking:
        if engine.dialect.name == "postgresql":
            # Who looks first is the victim there; superusers may keep the other from looking.
            other.execute(text("SET LOCAL deadlock_timeout = '1h'"))
        other.execute(_MANY, {"name": "a"})
        waiting = pool.submit(other.execute, _UPDATE, {"name": "a"})
        eventually(lambda: anybody_waits(looking), message="the other does not wait for the chunk")
        try:
            chunk.connection.execute(_UPDATE, {"name": "b"})
        finally:
            waiting.result(timeout=30)


def _lock_timeout(chunk: Chunk[int], engine: Engine) -> None:
    """Wait for a row that another has locked."""
    soon = {"postgresql": "SET LOCAL lock_timeout = '10ms'", "mysql": "SET SESSION innodb_lock_wait_timeout = 1"}
    chunk.connection.execute(text(soon[engine.dialect.name]))
    with engine.begin() as tx:
        tx.execute(_UPDATE, {"name": "a"})
        chunk.connection.execute(_UPDATE, {"name": "a"})


def _serialization_failure(chunk: Chunk[int], engine: Engine) -> None:
    """Change what another has changed since the transaction's snapshot."""
    chunk.connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    chunk.connection.execute(text("SELECT * FROM row_of"))
    with engine.begin() as tx:
        tx.execute(_UPDATE, {"name": "a"})
    chunk.connection.execute(_UPDATE, {"name": "a"})


def _lost_connection(chunk: Chunk[int], engine: Engine) -> None:
    """Lose the session to an administrator."""
    ask, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(:id)"),
        "mysql": ("SELECT connection_id()", "KILL :id"),
    }[engine.dialect.name]
    session = chunk.connection.execute(text(ask)).scalar_one()
    with engine.begin() as tx:
        tx.execute(text(kill), {"id": session})
    chunk.connection.execute(text("SELECT 1"))


#: What the database says, else another fault was tried again.
_SIGNS: dict[Callable[[Chunk[int], Engine], None], tuple[str, ...]] = {
    _deadlock: ("deadlock detected", "Deadlock found"),
    _lock_timeout: ("lock timeout", "Lock wait timeout"),
    _serialization_failure: ("could not serialize",),
    _lost_connection: ("terminating connection", "Lost connection"),
}
_ANYWHERE = [_deadlock, _lock_timeout, _lost_connection]


@pytest.mark.parametrize(
    ("server_url", "fault"),
    [
        *[(database, fault) for database in ("postgresql", "mysql") for fault in _ANYWHERE],
        # MariaDB reads the newest row there, and fails nobody.
        ("postgresql", _serialization_failure),
    ],
    indirect=["server_url"],
)
def test_a_fault_of_the_database_is_tried_again(
    server_kit: BatchKit, server_done: Ledger, fault: Callable[[Chunk[int], Engine], None]
):
    def work(chunk: Chunk[int]) -> None:
        if chunk.number == 2 and chunk.attempt == 1:
            fault(chunk, server_done.engine)
        write(chunk)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 30, 0) == (run.state, run.progress.done, run.progress.failed), run.error
    assert 1 == run.retries
    assert any(word in str(run.retry_reason) for word in _SIGNS[fault]), run.retry_reason
    assert list(range(30)) == server_done.items()


def test_a_file_that_another_has_locked_for_long_is_tried_again(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dialects, "_SQLITE_BUSY_SECONDS", 0.01)
    done = Ledger(sqlite_url)
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit, done.engine.connect() as other:
        kit.migrate()
        count_retry = kit._store.runs.count_retry  # noqa: SLF001  the moment to let go

        def let_go_and_count(run_id: RunId, reason: str) -> None:
            other.rollback()
            count_retry(run_id, reason)

        def work(chunk: Chunk[int]) -> None:
            write(chunk)
            if chunk.number == 1:
                chunk.after_commit(lambda: other.exec_driver_sql("BEGIN IMMEDIATE"))

        monkeypatch.setattr(kit._store.runs, "count_retry", let_go_and_count)  # noqa: SLF001  the same
        run = job(span(30), work, chunk_size=10).start()
        assert (RunState.SUCCEEDED, 30) == (run.state, run.progress.done), run.error
        assert 1 == run.retries
        assert "locked" in str(run.retry_reason)
    assert list(range(30)) == done.items()
    done.engine.dispose()
