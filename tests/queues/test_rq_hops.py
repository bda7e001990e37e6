"""A stock RQ worker that is being drained hands messages on, a few times at once, and then leaves that to sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from sqlalchemy import create_engine, text

from batchkit.delivery import MOST_HOPS
from batchkit.draining import VARIABLE, DrainNotice
from batchkit.queues.rq import notes
from batchkit.store.statements import PATIENCE_SECONDS
from tests.queues.conftest import Bench
from tests.waiting import eventually

_APP = "tests.queues.rq_app"


@pytest.fixture
def bench(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give a bench whose kit has RQ as its queue, and whose instance is being drained."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "drained"))
    DrainNotice().put_up(seconds=600)
    bench.app = f"{_APP}:kit"
    return bench


@pytest.fixture
def queue(bench: Bench) -> Iterator[Queue]:
    """Give the queue that programs enqueue into."""
    with Redis.from_url(bench.broker) as connection:
        yield Queue(connection=connection)


def _drained() -> dict[str, str]:
    return {VARIABLE: str(DrainNotice().path.parent)}


def test_a_job_that_starts_its_run_hops_a_few_times_and_rests_then(bench: Bench, queue: Queue):
    bench.crew.rq(env=_drained())
    job = queue.enqueue(f"{_APP}.count")
    eventually(lambda: job.get_status() is JobStatus.SCHEDULED, within=60, message=bench.crew.logs)
    job.refresh()
    assert MOST_HOPS == notes.notes_of(job)[notes.HOPS]
    assert 0 == bench.run().progress.done


def test_what_has_hopped_often_enough_is_sent_by_a_sweep_soon_and_not_when_it_was_to_be(bench: Bench, queue: Queue):
    bench.start("count")
    engine = create_engine(bench.database)
    with engine.begin() as tx:
        tx.execute(text("UPDATE batchkit_partition SET resend_at = now() + interval '900 seconds'"))
    bench.crew.rq(env=_drained())

    def seconds_left() -> float:
        with engine.begin() as tx:
            left: timedelta = tx.execute(text("SELECT resend_at - now() FROM batchkit_partition")).scalar_one()
        return left.total_seconds()

    eventually(lambda: seconds_left() <= PATIENCE_SECONDS, within=60, message=bench.crew.logs)
    engine.dispose()
    assert 0 == bench.run().progress.done
