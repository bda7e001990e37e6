"""Chunks that take longer than their lease."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import MetaData, Table, select, text

from batchkit import BatchKit, Chunk, RunState, rows, span
from batchkit.errors import InvalidJob
from batchkit.job import JOBS
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.servers.locks import anybody_waits
from tests.slices.conftest import Ledger, job, ledger, sleep, write
from tests.waiting import eventually

_LEASE = 0.6


@pytest.fixture
def server_kit(server_url: str):
    """Give a kit on each database with a server."""
    with closing(BatchKit(server_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def server_done(server_url: str):
    """Give the ledger there."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


def test_a_chunk_longer_than_its_lease_keeps_it(server_kit: BatchKit, server_done: Ledger):
    # Long enough for a machine that is busy with other things to renew it in time.
    lease = 2.0

    def work(chunk: Chunk[int]) -> None:
        sleep(chunk.connection, lease * 1.5)
        write(chunk)

    slow = job(span(2), work, chunk_size=1, lease=lease)
    run = server_kit.start_run_here(JOBS[slow.name], "{}")
    with Stop() as stop, ThreadPoolExecutor(1) as pool:
        working = pool.submit(server_kit.work_run, run.id, stop=stop)
        eventually(lambda: run.refresh().progress.workers)
        while not working.done():
            assert [] == server_kit._store.leases.claimable_in(run.id) or run.refresh().has_ended  # noqa: SLF001
            time.sleep(lease / 20)  # the lease is looked at again and again
    assert (RunState.SUCCEEDED, 0) == (run.refresh().state, run.progress.interruptions)
    assert [0, 1] == server_done.items()


def test_a_chunk_that_is_idle_in_its_transaction_for_longer_than_a_lease_is_done_once_in_the_end(
    server_kit: BatchKit, server_done: Ledger
):
    """The server ends such a session, since a stopped process looks the same; each try may idle twice as long."""
    tries: list[int] = []
    # In whole seconds, which is what MariaDB counts; as long that a busy machine makes no third try of it.
    lease, idle = 2, 3

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        tries.append(chunk.number)
        time.sleep(idle)  # the work: something outside the database

    run = job(span(1), work, lease=lease).start()
    assert RunState.SUCCEEDED == run.state, run.error
    assert [0] == server_done.items()
    assert 2 == len(tries)


def test_a_chunk_beyond_chunk_timeout_loses_its_lease_and_commits_nothing(server_kit: BatchKit, server_done: Ledger):
    hangs = [True]

    def work(chunk: Chunk[int]) -> None:
        if hangs:
            sleep(chunk.connection, _LEASE * 6)
        write(chunk)

    hung = job(span(1), work, lease=_LEASE, chunk_timeout=_LEASE)
    run = server_kit.start_run_here(JOBS[hung.name], "{}")
    with Stop() as stop, ThreadPoolExecutor(1) as pool:
        working = pool.submit(server_kit.work_run, run.id, stop=stop)
        (first,) = eventually(lambda: [p for p in run.partitions() if p.is_held])
        eventually(lambda: not run.partitions()[0].is_held, within=10)
        hangs.clear()
        server_kit.work_run(run.id, stop=stop)
        assert RunState.SUCCEEDED == run.refresh().state
        outcome = working.result(timeout=30)
    assert outcome is None or outcome.ending is Ending.LOST
    assert first.fence < run.partitions()[0].fence
    assert [0] == server_done.items()


def test_rows_locked_for_update_wait_for_others_and_are_never_skipped(server_kit: BatchKit, server_done: Ledger):
    with server_done.engine.begin() as tx:
        tx.execute(text("CREATE TABLE thing (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"))
        tx.execute(text("INSERT INTO thing VALUES (1, 0), (2, 0), (3, 0)"))
    thing = Table("thing", MetaData(), autoload_with=server_done.engine)
    made = job(
        lambda: rows(select(thing.c.n), key=thing.c.id, for_update=True),
        lambda chunk: chunk.connection.execute(ledger.insert(), [{"item": n} for n in chunk]),
    )
    with ThreadPoolExecutor(1) as pool:
        with server_done.engine.begin() as tx:
            tx.execute(text("UPDATE thing SET n = 7 WHERE id = 2"))
            starting = pool.submit(made.start)
            eventually(lambda: anybody_waits(tx))
        assert RunState.SUCCEEDED == starting.result(timeout=30).state
    assert [0, 0, 7] == server_done.items()


def test_a_job_of_the_script_itself_is_refused_where_workers_are_other_processes(database_url: str):
    made = job(span(1), lambda chunk: None)
    name, definition = made.name, JOBS[made.name]
    JOBS._jobs["__main__.made"] = definition  # noqa: SLF001  as if decorated in a script
    object.__setattr__(definition, "name", "__main__.made")
    try:
        with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
            kit.migrate()
            with pytest.raises(InvalidJob, match="move it into a module"):
                made.start()
            assert [] == kit.runs()
    finally:
        # Tests that come behind it in this process see all jobs.
        JOBS._jobs.pop("__main__.made")  # noqa: SLF001  see above
        object.__setattr__(definition, "name", name)
