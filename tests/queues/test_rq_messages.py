"""One enqueued job is one run; what waits for it is told once, at its real end."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue
from rq.job import Job, JobStatus

from batchkit import RunState
from tests.queues.conftest import Bench
from tests.queues.workers import QueueWorker
from tests.waiting import eventually

_APP = "tests.queues.rq_app"
_TERM = signal.SIGTERM


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Give a bench whose kit has RQ as its queue."""
    bench.app = f"{_APP}:kit"
    return bench


@pytest.fixture
def queue(bench: Bench) -> Queue:
    """Give the queue that programs enqueue into."""
    return Queue(connection=Redis.from_url(bench.broker))


def _enqueue(queue: Queue, function: str, **options: Any) -> Job:
    return queue.enqueue(
        f"{_APP}.{function}",
        on_success=Callback(f"{_APP}.on_success"),
        on_failure=Callback(f"{_APP}.on_failure"),
        **options,
    )


def _wait_status(bench: Bench, job: Job, status: JobStatus) -> None:
    eventually(
        lambda: job.get_status() is status,
        within=30,
        message=lambda: f"the job is {job.get_status()}\n{bench.crew.logs()}",
    )


def _check_noted(bench: Bench, *expected: object) -> None:
    """See that these were noted, each once, and nothing else."""
    noted = {repr(args): 1 for args in expected}
    eventually(
        lambda: bench.calls() == noted, within=30, message=lambda: f"{bench.calls()}, not {noted}\n{bench.crew.logs()}"
    )


def _success(bench: Bench) -> tuple[str, dict[str, int]]:
    return ("success", {"done": bench.items})


def test_what_depends_on_a_job_waits_for_its_real_end(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "short_slices", pause=0.02)
    queue.enqueue(f"{_APP}.note", "after", depends_on=job)
    bench.check(bench.run())
    _check_noted(bench, _success(bench), ("after",))
    _wait_status(bench, job, JobStatus.FINISHED)
    assert {"done": bench.items} == job.return_value(refresh=True)
    assert bench.items == job.get_meta()["progress"]["current"]


def test_a_failure_is_told_once(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "fails", pause=0.01)
    run = bench.run()
    assert RunState.FAILED == bench.wait_end(run)
    _wait_status(bench, job, JobStatus.FAILED)
    _check_noted(bench, ("failure", "RunFailed"))
    assert "no third chunk" in str(run.error)


def test_a_failed_run_that_is_resumed_goes_on_with_its_job(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "fails", pause=0.01)
    run = bench.run()
    assert RunState.FAILED == bench.wait_end(run)
    _wait_status(bench, job, JobStatus.FAILED)
    queue.enqueue(f"{_APP}.note", "mended")
    eventually(lambda: repr(("mended",)) in bench.calls(), within=30, message=bench.crew.logs)
    bench.command("resume", run.id, "--detach")
    _wait_status(bench, job, JobStatus.FINISHED)
    bench.check(run)


def test_a_run_that_a_program_starts_leaves_nothing_in_redis(bench: Bench, queue: Queue):
    bench.crew.rq()
    bench.check(bench.start("short_slices", pause=0.01))
    eventually(lambda: not queue.connection.keys("rq:job:*"), within=10, message=bench.crew.logs)


def test_a_paused_run_parks_its_job(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.05)
    run = bench.run()
    bench.wait_done(run, at_least=10)
    run.pause()
    _wait_status(bench, job, JobStatus.SCHEDULED)
    assert RunState.PAUSED == run.refresh().state
    bench.command("resume", run.id, "--detach")
    bench.check(run)
    _check_noted(bench, _success(bench))


def test_copies_of_a_job_are_one_run(bench: Bench, queue: Queue):
    job = _enqueue(queue, "short_slices", pause=0.02)
    queue.connection.rpush(queue.key, job.id, job.id)
    workers = [bench.crew.rq(), bench.crew.rq(), _supervisor(bench)]
    bench.check(bench.run())
    _check_noted(bench, _success(bench))
    assert workers


def _supervisor(bench: Bench) -> QueueWorker:
    return bench.crew.supervisor(bench.app)


def test_a_flushed_redis_costs_time_and_no_work(bench: Bench, queue: Queue):
    started = bench.start("short_slices", pause=0.01)
    queue.connection.flushdb()
    bench.crew.rq()
    _supervisor(bench)
    bench.check(started)


def test_a_job_that_calls_a_job_goes_on_with_the_same_run_when_it_comes_again(bench: Bench, queue: Queue):
    bench.crew.rq()
    caller = queue.enqueue(f"{_APP}.calls_a_job", 0.01)
    _wait_status(bench, caller, JobStatus.FINISHED)
    queue.connection.rpush(queue.key, caller.id)
    noted = {repr(("after the call",)): 2}
    eventually(lambda: bench.calls() == noted, within=30, message=bench.crew.logs)
    bench.check(bench.run())


def test_workers_with_the_json_serializer_do(bench: Bench):
    bench.crew.env["TEST_SERIALIZER"] = "rq.serializers.JSONSerializer"
    bench.crew.rq("-S", "rq.serializers.JSONSerializer")
    bench.check(bench.start("short_slices", pause=0.01))


def test_a_pool_of_workers_does(bench: Bench, queue: Queue):
    bench.crew.rq_pool(number=2)
    job = _enqueue(queue, "short_slices", pause=0.02)
    bench.check(bench.run())
    _wait_status(bench, job, JobStatus.FINISHED)


def test_a_chunk_that_rqs_timeout_cuts_short_is_no_failure(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "slow_once", job_timeout=2)
    _supervisor(bench)
    run = bench.run()
    bench.check(run)
    _wait_status(bench, job, JobStatus.FINISHED)
    assert 1 <= run.progress.interruptions


def test_other_peoples_jobs_behave_as_before(bench: Bench, queue: Queue):
    worker = bench.crew.rq()
    bench.check(bench.start("short_slices", pause=0.01))
    job = queue.enqueue(f"{_APP}.sleeps", 1.5)
    noted = {repr(("sleeps begins",)): 1}
    eventually(lambda: bench.calls() == noted, within=30, message=bench.crew.logs)
    worker.send_all(_TERM)
    worker.wait()
    # Stock RQ loses it to a signal that reaches every process; batchkit's handler is there for slices only.
    assert noted == bench.calls()
    assert JobStatus.FAILED is job.get_status()


def test_params_that_do_not_fit_fail_the_job_and_start_no_run(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "short_slices", pauze=1)
    _wait_status(bench, job, JobStatus.FAILED)
    assert [] == bench.kit.runs()
    assert "pauze" in bench.crew.logs()
