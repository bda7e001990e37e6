"""A resumable on stock workers: slices, kills and the end of its message, as for any other job."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from redis import Redis
from rq import Queue
from rq.job import JobStatus

from batchkit import Run, RunState
from tests.queues import ledger
from tests.queues.conftest import Bench
from tests.queues.workers import QueueWorker
from tests.waiting import eventually

_RQ_APP = "tests.queues.rq_app"


def _check(bench: Bench, run: Run) -> None:
    assert RunState.SUCCEEDED == bench.wait_end(run), bench.crew.logs()
    assert {1: bench.items} == ledger.times(bench.database), bench.crew.logs()
    assert (bench.items, {"done": bench.items}) == (run.progress.done, run.result)


def _stop(worker: QueueWorker) -> None:
    worker.send(signal.SIGTERM)


def _kill(worker: QueueWorker) -> None:
    worker.send_all(signal.SIGKILL)


@pytest.mark.parametrize("hurt", [_stop, _kill])
def test_celery_works_a_resumable_in_slices_and_by_the_next_worker(bench: Bench, hurt: Callable[[QueueWorker], None]):
    for _ in range(2):
        bench.crew.celery("--pool", "prefork", "-c", "1")
    message = bench.send("in-steps", kwargs={"pause": 0.15})
    run = bench.run()
    bench.wait_done(run, at_least=20)
    victim = bench.holder(run)
    hurt(victim)
    victim.wait()
    _check(bench, run)
    assert 2 <= run.progress.interruptions
    assert {"done": bench.items} == bench.celery.AsyncResult(message).get(timeout=60)


@pytest.mark.parametrize("hurt", [_stop, _kill])
def test_rq_works_a_resumable_in_slices_and_by_the_next_worker(bench: Bench, hurt: Callable[[QueueWorker], None]):
    bench.app = f"{_RQ_APP}:kit"
    for _ in range(2):
        bench.crew.rq()
    bench.crew.supervisor(bench.app)
    rq_job = Queue(connection=Redis.from_url(bench.broker)).enqueue(f"{_RQ_APP}.in_steps", pause=0.15)
    run = bench.run()
    bench.wait_done(run, at_least=20)
    victim = bench.holder(run)
    hurt(victim)
    victim.wait()
    _check(bench, run)
    eventually(
        lambda: rq_job.get_status() is JobStatus.FINISHED, within=60, message=lambda: f"{rq_job}\n{bench.crew.logs()}"
    )
