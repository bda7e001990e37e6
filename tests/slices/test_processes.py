"""Forks, imports and threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import batchkit
from batchkit import BatchKit, RunState, span
from batchkit.queues import InlineQueue
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write


def test_a_child_opens_connections_of_its_own(kit: BatchKit, done: Ledger):
    made = job(span(50), write, chunk_size=10)
    made.start()
    parents = _connection_id(kit)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of pytest must run here, whatever happens.
        try:
            run = made.start()
            told = f"{run.state} {_connection_id(kit) != parents}"
            os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    told = os.read(reader, 100).decode()
    os.close(reader)
    assert "succeeded True" == told
    # The parent's connection still works after the child has ended.
    assert RunState.SUCCEEDED == made.start().state
    assert 150 == done.count()


def _connection_id(kit: BatchKit) -> object:
    with kit._store.database.connect() as connection:  # noqa: SLF001  which connection it is, only the driver knows
        driver: Any = connection.connection.driver_connection
        return driver.info.backend_pid if hasattr(driver, "info") else (os.getpid(), id(driver))


def test_many_threads_work_runs_of_one_kit(kit: BatchKit, done: Ledger):
    made = job(span(40), write, chunk_size=10)
    threads = [threading.Thread(target=made.start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {RunState.SUCCEEDED} == {run.state for run in kit.runs()}
    assert 160 == done.count()


def test_two_workers_in_one_process_share_a_run_without_doubling(kit: BatchKit, done: Ledger):
    with closing(BatchKit(kit._store.database.engine)):  # noqa: SLF001  a LocalQueue, so that start() does not work it
        run = job(span(300), write, chunk_size=5, slice_time=0.01).start()
    with Stop() as stop:
        threads = [threading.Thread(target=kit.work_run, args=[run.id], kwargs={"stop": stop}) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (RunState.SUCCEEDED, 300) == (run.refresh().state, run.progress.done)
    assert list(range(300)) == done.items()


def test_importing_batchkit_does_not_import_sqlalchemy():
    there = "'sqlalchemy' in sys.modules"
    program = f"import sys, batchkit; print({there}, bool(batchkit.BatchKit), {there})"
    assert b"False True True\n" == subprocess.check_output([sys.executable, "-c", program])


def test_every_public_name_is_there_and_no_other(kit: BatchKit):
    for name in batchkit.__all__:
        assert getattr(batchkit, name) is not None
    assert set(batchkit.__all__) == set(batchkit._HOMES)  # noqa: SLF001  the table behind __getattr__
    assert isinstance(kit.queue, InlineQueue)
    assert "0.1.0" == batchkit.__version__
