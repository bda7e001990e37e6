"""What may pass is tried again: faults of the database in any case, other errors as the job's policy says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import tenacity
from sqlalchemy import Engine, text
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed, wait_none

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import InvalidJob
from batchkit.job import JOBS
from batchkit.queues import InlineQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write

_THREE_TIMES = Retrying(stop=stop_after_attempt(3), wait=wait_none())


class Flaky:
    """A function that fails so often at each chunk before it works."""

    def __init__(self, times: int, error: type[Exception] = ConnectionError) -> None:
        self.times = times
        self._error = error
        self.attempts: list[int] = []

    def __call__(self, chunk: Chunk[int]) -> None:
        self.attempts.append(chunk.attempt)
        write(chunk)
        if chunk.attempt <= self.times:
            raise self._error("the API was away")


def _flaky(flaky: Flaky, **options: Any) -> Any:
    def work(chunk: Chunk[int]) -> None:
        flaky(chunk)

    return job(span(20), work, chunk_size=10, **options)


def test_a_chunk_is_tried_again_as_the_policy_says_and_the_run_shows_it(kit: BatchKit, done: Ledger):
    flaky = Flaky(2)
    run = _flaky(flaky, retry=_THREE_TIMES).start()
    assert (RunState.SUCCEEDED, 20, 0) == (run.state, run.progress.done, run.progress.failed)
    assert [1, 2, 3, 1, 2, 3] == flaky.attempts
    assert list(range(20)) == done.items()
    assert 4 == run.retries
    assert run.retry_reason == "attempt 2 behind the cursor 9: ConnectionError: the API was away"


def test_an_error_that_the_policy_does_not_name_is_not_tried_again(kit: BatchKit, done: Ledger):
    flaky = Flaky(1, ValueError)
    policy = Retrying(stop=stop_after_attempt(9), retry=retry_if_exception_type(ConnectionError))
    run = _flaky(flaky, retry=policy).start()
    assert (RunState.FAILED, 0) == (run.state, run.retries)
    assert run.error is not None
    assert "tenacity" not in run.error.traceback


def test_halving_is_not_slowed_by_the_policy_and_the_last_item_is_given_all_tries(kit: BatchKit, done: Ledger):
    sizes: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        sizes.append(len(chunk))
        write(chunk)
        if 7 in chunk:
            raise ConnectionError("no answer for item 7")

    run = job(span(16), work, chunk_size=16, max_failures=1, retry=_THREE_TIMES).start()
    assert (RunState.SUCCEEDED, 15, 1) == (run.state, run.progress.done, run.progress.failed)
    assert 3 == run.failures()[0].attempts
    assert 3 == sizes.count(16)
    assert [8, 4, 2, 1, 1, 1, 1] == sizes[3:10]
    assert [item for item in range(16) if item != 7] == done.items()


def test_a_policy_that_raises_its_own_error_still_isolates_the_item(kit: BatchKit, done: Ledger):
    run = _flaky(Flaky(99), max_failures=20, retry=Retrying(stop=stop_after_attempt(2), reraise=False)).start()
    assert (RunState.SUCCEEDED, 0, 20) == (run.state, run.progress.done, run.progress.failed)
    assert {"ConnectionError"} == {each.error_type for each in run.failures()}


def test_a_wait_ends_at_once_when_the_worker_is_to_stop(kit: BatchKit, done: Ledger):
    stop = Stop()
    policy = Retrying(stop=stop_after_attempt(9), wait=wait_fixed(3600), before_sleep=lambda _: stop.request("SIGTERM"))
    flaky = Flaky(1)
    made = _flaky(flaky, retry=policy)
    run = kit.start_run_here(JOBS[made.name], "{}")
    outcome = kit.work_run(run.id, stop=stop)
    assert outcome is not None
    assert (Ending.INTERRUPTED, RunState.QUEUED, 1) == (outcome.ending, run.refresh().state, run.retries)
    flaky.times = 0
    with Stop() as never:
        kit.work_run(run.id, stop=never)
    assert (RunState.SUCCEEDED, list(range(20))) == (run.refresh().state, done.items())


def test_a_long_wait_is_no_chunk_that_hangs(kit: BatchKit, done: Ledger):
    policy = Retrying(stop=stop_after_attempt(2), wait=wait_fixed(3))
    run = _flaky(Flaky(1), retry=policy, lease=1, chunk_timeout=1.5).start()
    assert (RunState.SUCCEEDED, None, 0) == (run.state, run.waiting_reason, run.progress.interruptions)
    assert list(range(20)) == done.items()


@pytest.mark.parametrize("retry", [3, "twice", tenacity.AsyncRetrying(), tenacity.retry])
def test_what_is_no_policy_is_refused(retry: Any):
    with pytest.raises(InvalidJob, match="Retrying"):
        job(span(1), write, retry=retry)


# Faults of the database, each provoked for real


@pytest.fixture
def postgres_kit(postgres_url: str) -> Iterator[BatchKit]:
    """Give a kit on PostgreSQL."""
    with closing(BatchKit(postgres_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def postgres_done(postgres_url: str) -> Iterator[Ledger]:
    """Give the ledger on PostgreSQL, and two rows to fight about."""
    made = Ledger(postgres_url)
    with made.engine.begin() as tx:
        tx.execute(text("CREATE TABLE row_of (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"))
        tx.execute(text("INSERT INTO row_of VALUES ('a', 0), ('b', 0)"))
    yield made
    made.engine.dispose()


_UPDATE = text("UPDATE row_of SET value = value + 1 WHERE name = :name")


def _deadlock(chunk: Chunk[int], engine: Engine) -> None:
    """Lock a, then want b, which another has who wants a."""
    # Superusers only: the other is never the victim.
    chunk.connection.execute(_UPDATE, {"name": "a"})
    has_b = threading.Event()

    def other() -> None:
        with engine.begin() as tx:
            tx.execute(text("SET LOCAL deadlock_timeout = '1h'"))
            tx.execute(_UPDATE, {"name": "b"})
            has_b.set()
            tx.execute(_UPDATE, {"name": "a"})

    threading.Thread(target=other).start()
    assert has_b.wait(10)
    chunk.connection.execute(_UPDATE, {"name": "b"})


def _lock_timeout(chunk: Chunk[int], engine: Engine) -> None:
    """Wait for a row that another has locked."""
    chunk.connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
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
    pid = chunk.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with engine.begin() as tx:
        tx.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    chunk.connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("fault", [_deadlock, _lock_timeout, _serialization_failure, _lost_connection])
def test_a_fault_of_the_database_is_tried_again(
    postgres_kit: BatchKit, postgres_done: Ledger, fault: Callable[[Chunk[int], Engine], None]
):
    def work(chunk: Chunk[int]) -> None:
        if chunk.number == 2 and chunk.attempt == 1:
            fault(chunk, postgres_done.engine)
        write(chunk)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 30, 0) == (run.state, run.progress.done, run.progress.failed), run.error
    assert 1 == run.retries
    assert list(range(30)) == postgres_done.items()
