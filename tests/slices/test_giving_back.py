"""A run's row that others lock for long, at the moment in which a partition is given back to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Connection, text

from batchkit import BatchKit, Chunk, Run, RunState, span
from batchkit.queues import InlineQueue
from batchkit.store import database
from tests.slices.conftest import Ledger, job, let_leases_run_out, write

_LOCK = text("UPDATE batchkit_run SET version = version + 1")


@pytest.fixture
def kit(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchKit]:
    """Give a kit whose transactions wait for locks no longer than a second, which is the least on MariaDB."""
    monkeypatch.setattr(database, "_LOCK_WAIT_SECONDS", 1.0)
    with closing(BatchKit(server_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def done(server_url: str) -> Iterator[Ledger]:
    """Give the ledger."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


def _start_and_lock(other: Connection, *, slice_time: float) -> Run:
    """Work a run whose row *other* locks once its last chunk is committed, or its first where a slice ends with it."""

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == (3 if slice_time else 1):
            chunk.after_commit(lambda: other.execute(_LOCK))

    run: Run = job(span(30), work, chunk_size=10, slice_time=slice_time or 1e-6).start()
    return run


@pytest.mark.parametrize("slice_time", [60.0, 0.0], ids=["at its end", "at the end of a slice"])
def test_a_run_whose_row_is_locked_for_long_is_given_back_later(
    kit: BatchKit, done: Ledger, monkeypatch: pytest.MonkeyPatch, slice_time: float
):
    release = kit._store.leases.release  # noqa: SLF001  the moment to let go
    with done.engine.connect() as other:

        def release_and_let_go(*args: Any, **values: Any) -> RunState:
            try:
                return release(*args, **values)
            finally:
                other.rollback()

        monkeypatch.setattr(kit._store.leases, "release", release_and_let_go)  # noqa: SLF001  the same
        run = _start_and_lock(other, slice_time=slice_time)
    assert (RunState.SUCCEEDED, 30) == (run.state, run.progress.done), run.error
    assert list(range(30)) == done.items()


def test_a_run_whose_row_is_not_to_be_had_goes_on_when_the_lease_is_over(kit: BatchKit, done: Ledger):
    with done.engine.connect() as other:
        run = _start_and_lock(other, slice_time=60.0)
    assert RunState.RUNNING is run.state, run.error
    let_leases_run_out(kit, run)
    kit.recover()
    assert (RunState.SUCCEEDED, 30) == (run.refresh().state, run.progress.done)
    assert list(range(30)) == done.items()
