"""One enqueued job is one run; what waits for it is told once, at its real end."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, Retry
from rq.command import send_stop_job_command
from rq.job import Dependency, Job, JobStatus
from rq.registry import CanceledJobRegistry

from batchkit import Run, RunState
from tests.queues import ledger
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
    job = _enqueue(queue, "count", pause=0.15)
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


@pytest.mark.parametrize("retry", [None, Retry(max=1)], ids=["no retries", "a retry of the user's"])
def test_a_killed_horse_is_no_failure_to_those_who_wait(bench: Bench, queue: Queue, retry: Retry | None):
    worker = bench.crew.rq()
    _supervisor(bench)
    job = _enqueue(queue, "count", pause=0.1, retry=retry)
    queue.enqueue(f"{_APP}.note", "after", depends_on=Dependency(job, allow_failure=True))
    run = bench.run()
    for done in (20, 80):
        bench.wait_done(run, at_least=done)
        worker.send_children(signal.SIGKILL)
    bench.check(run)
    _check_noted(bench, _success(bench), ("after",))
    assert "moving job to FailedJobRegistry" not in worker.whole_log()
    _wait_status(bench, job, JobStatus.FINISHED)


def _check_succeeded(bench: Bench, *, times: int) -> None:
    noted = {repr(_success(bench)): times}
    eventually(lambda: bench.calls() == noted, within=60, message=bench.crew.logs)


def test_an_id_that_is_used_again_is_another_message(bench: Bench, queue: Queue):
    bench.crew.rq()
    first = _enqueue(queue, "count", pause=0.0, job_id="nightly")
    _wait_status(bench, first, JobStatus.FINISHED)
    second = _enqueue(queue, "short_slices", pause=0.0, job_id="nightly")
    eventually(lambda: len(bench.kit.runs()) == 2, within=30, message=bench.crew.logs)
    _wait_status(bench, second, JobStatus.FINISHED)
    assert {2: bench.items} == ledger.times(bench.database)
    assert {repr(_success(bench)): 2} == bench.calls()


def test_an_id_that_is_used_twice_at_once_is_one_run(bench: Bench, queue: Queue):
    bench.crew.rq()
    bench.crew.rq()
    first = _enqueue(queue, "count", pause=0.1, job_id="nightly")
    bench.wait_done(bench.run(), at_least=10)
    _enqueue(queue, "count", pause=0.1, job_id="nightly")
    bench.check(bench.run())
    _check_noted(bench, _success(bench))
    _wait_status(bench, first, JobStatus.FINISHED)


def test_an_id_that_is_used_for_something_else_meanwhile_is_refused(bench: Bench, queue: Queue):
    bench.crew.rq()
    bench.crew.rq()
    _enqueue(queue, "count", pause=0.1, job_id="nightly")
    run = bench.run()
    bench.wait_done(run, at_least=10)
    other = _enqueue(queue, "count", pause=0.2, job_id="nightly")
    _wait_status(bench, other, JobStatus.FAILED)
    assert "give each message an id of its own" in bench.crew.logs()
    _supervisor(bench)
    bench.check(run)
    assert 1 == len(bench.kit.runs())


def test_a_job_that_calls_a_job_does_it_again_each_night(bench: Bench, queue: Queue):
    bench.crew.rq()
    caller = queue.enqueue(f"{_APP}.calls_a_job", 0.0, result_ttl=-1)
    _wait_status(bench, caller, JobStatus.FINISHED)
    queue.enqueue_job(Job.fetch(caller.id, connection=queue.connection))
    eventually(lambda: ledger.times(bench.database) == {2: bench.items}, within=30, message=bench.crew.logs)
    assert 2 == len(bench.kit.runs())


def test_each_repetition_is_a_run(bench: Bench, queue: Queue):
    from rq import Repeat  # noqa: PLC0415  the oldest RQ, on which other tests of this file run, has none

    bench.crew.rq()
    _enqueue(queue, "count", pause=0.0, repeat=Repeat(times=2))
    _check_succeeded(bench, times=3)
    assert 3 == len(bench.kit.runs())
    assert {3: bench.items} == ledger.times(bench.database)


def test_a_job_that_a_scheduler_enqueues_each_night_is_a_run_each_time(bench: Bench, queue: Queue):
    """As rq-scheduler does: the same job, enqueued again after it has finished."""
    bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.0, result_ttl=-1)
    for night in (1, 2):
        _wait_status(bench, job, JobStatus.FINISHED)
        queue.enqueue_job(Job.fetch(job.id, connection=queue.connection))
        _check_succeeded(bench, times=night + 1)
    assert 3 == len(bench.kit.runs())
    assert {3: bench.items} == ledger.times(bench.database)


def test_a_failed_job_that_is_requeued_goes_on_where_it_failed(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "fails", pause=0.01)
    _wait_status(bench, job, JobStatus.FAILED)
    failed = bench.run()
    done = failed.progress.done
    ledger.note(bench.database, "mended")
    queue.failed_job_registry.requeue(job)
    _wait_status(bench, job, JobStatus.FINISHED)
    bench.check(bench.run())
    assert done < bench.items
    assert {repr(each): 1 for each in (("failure", "RunFailed"), ("mended",), ("success", None))} == bench.calls()


def test_a_copy_that_comes_after_the_end_leaves_the_job_as_it_is(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.0)
    _wait_status(bench, job, JobStatus.FINISHED)
    queue.connection.rpush(queue.key, job.id)
    later = queue.enqueue(f"{_APP}.note", "later")
    _wait_status(bench, later, JobStatus.FINISHED)
    assert JobStatus.FINISHED is job.get_status()
    bench.check(bench.run())
    assert {repr(_success(bench)): 1, repr(("later",)): 1} == bench.calls()


def test_a_callback_that_takes_long_is_called_once(bench: Bench, queue: Queue):
    bench.crew.rq()
    bench.crew.rq()
    sweeping = _supervisor(bench)
    job = queue.enqueue(f"{_APP}.count", pause=0.0, on_success=Callback(f"{_APP}.on_success_slowly"))
    _check_noted(bench, _success(bench))
    ledger.let_announcement_be_due(bench.database)
    eventually(lambda: not ledger.is_announcement_due(bench.database), within=30, message=sweeping.log)
    ledger.note(bench.database, "enough")
    _wait_status(bench, job, JobStatus.FINISHED)
    ledger.let_announcement_be_due(bench.database)
    eventually(lambda: ledger.is_announced(bench.database), within=30, message=sweeping.log)
    assert {repr(_success(bench)): 1, repr(("enough",)): 1} == bench.calls()


def test_a_callback_that_fails_fails_the_job_and_not_the_run(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = queue.enqueue(f"{_APP}.count", pause=0.0, on_success=Callback(f"{_APP}.on_success_badly"))
    _wait_status(bench, job, JobStatus.FAILED)
    bench.check(bench.run())
    assert {repr(_success(bench)): 1} == bench.calls()


def test_a_worker_that_is_killed_in_a_callback_has_it_called_again(bench: Bench, queue: Queue):
    worker = bench.crew.rq()
    sweeping = _supervisor(bench)
    job = queue.enqueue(f"{_APP}.count", pause=0.0, on_success=Callback(f"{_APP}.on_success_slowly"))
    _check_noted(bench, _success(bench))
    worker.send_children(signal.SIGKILL)
    ledger.note(bench.database, "enough")
    ledger.let_announcement_be_due(bench.database)
    noted = {repr(_success(bench)): 2, repr(("enough",)): 1}
    eventually(lambda: bench.calls() == noted, within=30, message=lambda: f"{bench.crew.logs()}{sweeping.log()}")
    _wait_status(bench, job, JobStatus.FINISHED)
    bench.check(bench.run())


@pytest.mark.parametrize("function", ["calls_another", "nests"])
def test_a_chunk_that_calls_a_job_does_not_stop_its_own(bench: Bench, queue: Queue, function: str):
    """No supervisor is there that would wake the outer one up."""
    worker = bench.crew.rq()
    job = _enqueue(queue, function, pause=0.0)
    _wait_status(bench, job, JobStatus.FINISHED)
    assert {RunState.SUCCEEDED} == {run.state for run in bench.kit.runs()}
    assert 2 == len(bench.kit.runs()), worker.log()
    assert {1: bench.items} == ledger.times(bench.database)


def test_a_cancel_that_rq_has_written_over_is_heard_of(bench: Bench, queue: Queue):
    """It came while the job went from one slice to the next: its status is another by now."""
    bench.crew.rq()
    job = _enqueue(queue, "short_slices", pause=0.2)
    bench.wait_done(bench.run(), at_least=10)
    CanceledJobRegistry(queue.name, connection=queue.connection).add(job, -1)
    assert RunState.CANCELLED == bench.wait_end(bench.run())


def test_a_job_that_was_cancelled_and_is_enqueued_anew_is_worked(bench: Bench, queue: Queue):
    job = _enqueue(queue, "short_slices", pause=0.0)
    job.cancel()
    queue.enqueue_job(job)
    bench.crew.rq()
    assert RunState.SUCCEEDED == bench.wait_end(bench.run())


def test_to_cancel_a_job_is_to_cancel_its_run(bench: Bench, queue: Queue):
    bench.crew.rq()
    # For a cancel that comes between two slices
    _supervisor(bench)
    job = _enqueue(queue, "short_slices", pause=0.2)
    bench.wait_done(bench.run(), at_least=10)
    job.cancel()
    assert RunState.CANCELLED == bench.wait_end(bench.run())
    assert repr(_success(bench)) not in bench.calls()


def test_to_cancel_a_job_that_waits_between_slices_is_to_cancel_its_run(bench: Bench, queue: Queue):
    worker = bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.3)
    bench.wait_done(bench.run(), at_least=10)
    worker.send_all(_TERM)
    worker.wait()
    job.cancel()
    _supervisor(bench)
    assert RunState.CANCELLED == bench.wait_end(bench.run())
    assert JobStatus.CANCELED is job.get_status()
    assert [] == queue.job_ids


def test_to_stop_a_job_is_to_cancel_its_run(bench: Bench, queue: Queue):
    bench.crew.rq()
    _supervisor(bench)
    job = _enqueue(queue, "count", pause=0.5)
    bench.wait_done(bench.run(), at_least=10)
    send_stop_job_command(queue.connection, job.id)
    _wait_status(bench, job, JobStatus.STOPPED)
    assert RunState.CANCELLED == bench.wait_end(bench.run())
    assert JobStatus.STOPPED is job.get_status()


def test_a_job_that_waits_for_long_does_not_expire(bench: Bench, queue: Queue):
    job, run = _paused(bench, queue, ttl=3600)
    assert -1 == queue.connection.ttl(job.key)
    bench.command("resume", run.id, "--detach")
    bench.check(run)
    _check_noted(bench, _success(bench))


def _paused(bench: Bench, queue: Queue, **options: Any) -> tuple[Job, Run]:
    """Enqueue a job and pause its run."""
    bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.15, **options)
    run = bench.run()
    bench.wait_done(run, at_least=10)
    run.pause()
    _wait_status(bench, job, JobStatus.SCHEDULED)
    return job, run


def test_a_copy_that_is_worked_beside_a_job_leaves_it_as_it_ends(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = _enqueue(queue, "count", pause=0.3)
    run = bench.run()
    bench.wait_done(run, at_least=10)
    queue.connection.rpush(queue.key, job.id)
    bench.crew.rq()
    scheduled = queue.scheduled_job_registry
    eventually(lambda: job.id in scheduled.get_job_ids(), within=30, message=bench.crew.logs)
    bench.check(run)
    _check_noted(bench, _success(bench))
    _wait_status(bench, job, JobStatus.FINISHED)
    assert [] == scheduled.get_job_ids()


def test_a_copy_that_comes_while_the_end_is_told_does_not_show_the_job_as_scheduled(bench: Bench, queue: Queue):
    bench.crew.rq()
    job = queue.enqueue(f"{_APP}.count", pause=0.0, on_success=Callback(f"{_APP}.on_success_slowly"))
    eventually(lambda: repr(_success(bench)) in bench.calls(), within=30, message=bench.crew.logs)
    queue.connection.rpush(queue.key, job.id)
    other = bench.crew.rq()
    eventually(lambda: other.whole_log().count(job.id) > 1, within=30, message=bench.crew.logs)
    assert JobStatus.SCHEDULED is not job.get_status()
    ledger.note(bench.database, "enough")
    _wait_status(bench, job, JobStatus.FINISHED)
    _check_noted(bench, _success(bench), ("enough",))
    assert [] == queue.scheduled_job_registry.get_job_ids()
