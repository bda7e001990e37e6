"""Runs that were unfinished when the tables were upgraded go on, and lose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from alembic import command
from sqlalchemy import insert

from batchkit import BatchKit, Chunk, Run, RunState, Throttle, span
from batchkit.queues import LocalQueue
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, ledger, let_leases_run_out


@pytest.fixture
def done(database_url: str) -> Iterator[Ledger]:
    """Give the ledger."""
    made = Ledger(database_url)
    yield made
    made.engine.dispose()


def _work(kit: BatchKit, run: Run, *, chunks: int | None = None) -> None:
    seen: list[object] = []
    with Stop() as stop:

        def watch(lease: object) -> None:
            seen.append(lease)
            if len(seen) == chunks:
                stop.request("SIGTERM")

        kit.work_run(run.id, stop=stop, watch=watch)


@pytest.mark.parametrize("revision", ["0004", "0005", "0006", "0011"])
def test_runs_of_older_tables_go_on_behind_an_upgrade(database_url: str, done: Ledger, revision: str):
    refused = {5, 25}

    def work(chunk: Chunk[int]) -> None:
        for item in refused & set(chunk):
            chunk.fail(item, "not yet")
        good = [item for item in chunk if item not in refused]
        chunk.connection.execute(insert(ledger), [{"item": item} for item in good])

    made = job(span(40), work, chunk_size=4, max_failures=2, throttle=Throttle(rate=100_000))
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()
        begun, paused, unplanned, held, ended = [made.start() for _ in range(5)]
        for run in (begun, paused, held):
            _work(kit, run, chunks=3)
        paused.pause()
        _work(kit, ended)
        assert kit._store.leases.claim(held.id, 0, worker="dead", seconds=60) is not None  # noqa: SLF001  it dies
        with kit._store.schema._locked() as tx:  # noqa: SLF001  there is no public way down
            command.downgrade(kit._store.schema._config(connection=tx), revision)  # noqa: SLF001

    # Another process, with the code of today.
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()
        begun, paused, unplanned, held, ended = [kit.run(run.id) for run in (begun, paused, unplanned, held, ended)]
        let_leases_run_out(kit, held)
        paused.resume()
        refused.discard(25)
        for run in (begun, paused, unplanned, held):
            _work(kit, run)
            assert RunState.SUCCEEDED == run.refresh().state
            assert (39, 1, 0) == (run.progress.done, run.progress.failed, run.progress.in_doubt)
        again = ended.retry_failures()
        _work(kit, again)
        assert (1, 1) == (again.refresh().progress.done, again.progress.failed)
        assert ["5"] == [each.item for each in ended.failures() if each.resolved_at is None]
    assert Counter({item: 5 for item in range(40) if item != 5}) == Counter(done.items())
