"""Whatever ends an RQ worker, by whatever signals: every item is done once, and nothing is left among the failed."""

from __future__ import annotations

import pytest
from redis import Redis
from rq import Callback, Queue
from rq.job import JobStatus

from batchkit import RunState
from tests.queues import gating, ledger
from tests.queues.conftest import Bench
from tests.queues.faults import FAULTS
from tests.waiting import eventually

_APP = "tests.queues.rq_app"
_WITHOUT_CHILDREN = ["SIGTERM main", "SIGKILL main", "SIGTERM then SIGKILL", "SIGINT main"]


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Give a bench whose kit has RQ as its queue."""
    bench.app = f"{_APP}:kit"
    return bench


def _queue(bench: Bench) -> Queue:
    return Queue(connection=Redis.from_url(bench.broker))


def _check_nothing_failed(bench: Bench) -> None:
    queue = _queue(bench)
    assert [] == queue.failed_job_registry.get_job_ids(cleanup=False), bench.crew.logs()


def _hurt(bench: Bench, fault: str, kind: str, *, is_enqueued: bool) -> None:
    what = FAULTS[fault]
    for _ in range(2):
        bench.crew.rq(kind=kind)
    bench.crew.supervisor(bench.app)
    job = None
    if is_enqueued:
        job = _queue(bench).enqueue(f"{_APP}.outlasts", pause=0.15, on_success=Callback(f"{_APP}.on_success"))
        run = bench.run()
    else:
        run = bench.start("outlasts", pause=0.15)
    bench.wait_done(run, at_least=10)

    victim = bench.holder(run)
    what.hurt(victim)
    if what.ends:
        victim.wait()
    ledger.note(bench.database, gating.GO)
    bench.check(run)
    assert 1 <= run.progress.interruptions
    if job is not None:
        eventually(
            lambda: job.get_status() is JobStatus.FINISHED,
            within=30,
            message=lambda: f"the job is {job.get_status()}\n{bench.crew.logs()}",
        )
        assert {repr((gating.GO,)): 1, repr(("success", {"done": bench.items})): 1} == bench.calls()
    _check_nothing_failed(bench)


@pytest.mark.parametrize("is_enqueued", [False, True], ids=["started", "enqueued"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_is_ended(bench: Bench, fault: str, *, is_enqueued: bool):
    _hurt(bench, fault, "rq.Worker", is_enqueued=is_enqueued)


@pytest.mark.parametrize("is_enqueued", [False, True], ids=["started", "enqueued"])
@pytest.mark.parametrize("fault", _WITHOUT_CHILDREN)
def test_a_simple_worker_is_ended(bench: Bench, fault: str, *, is_enqueued: bool):
    _hurt(bench, fault, "rq.SimpleWorker", is_enqueued=is_enqueued)


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGTERM all", "SIGKILL all"])
def test_a_heroku_worker_is_ended(bench: Bench, fault: str):
    _hurt(bench, fault, "rq.worker.HerokuWorker", is_enqueued=True)


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGTERM all"])
@pytest.mark.parametrize("kind", ["rq.Worker", "rq.SimpleWorker"])
def test_a_chunk_that_would_outlive_the_grace_is_handed_on_before_the_kill(bench: Bench, fault: str, kind: str):
    first = bench.crew.rq(kind=kind, env={"BATCHKIT_GRACE_SECONDS": "3"})
    run = bench.start("slow_once")
    eventually(lambda: bench.calls() == {repr(("slow",)): 1}, within=30, message=bench.crew.logs)
    FAULTS[fault].hurt(first)
    first.wait()
    assert (RunState.QUEUED, 50) == (run.refresh().state, run.progress.done)
    bench.crew.rq(kind=kind)
    bench.check(run)
    _check_nothing_failed(bench)
