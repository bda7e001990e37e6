"""One message is one run, however often it is delivered; what is composed around it fires once, at its real end."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import redis
from celery import Signature, chain, chord, group

from batchkit import Run, RunState
from tests.queues import ledger
from tests.queues.conftest import Bench
from tests.servers.redis import RedisServer
from tests.waiting import eventually

_ONE_CHILD = ("--pool", "prefork", "-c", "1")


def _task(bench: Bench, name: str, *args: object, **kwargs: object) -> Signature:
    return bench.celery.signature(name, args=args, kwargs=kwargs)


def _note(bench: Bench) -> Signature:
    return _task(bench, "note")


def _check_noted(bench: Bench, *expected: object) -> None:
    """See that these were noted, each once, and nothing else."""
    noted = {repr(args): 1 for args in expected}
    eventually(
        lambda: bench.calls() == noted, within=30, message=lambda: f"{bench.calls()}, not {noted}\n{bench.crew.logs()}"
    )


@pytest.mark.parametrize("task", ["short-slices", "decorated"])
def test_a_chain_goes_on_at_the_real_end_after_many_slices(bench: Bench, task: str):
    bench.crew.celery(*_ONE_CHILD)
    result = chain(_task(bench, task, pause=0.02), _note(bench))()
    bench.check(bench.run())
    _check_noted(bench, ({"done": bench.items},))
    eventually(result.successful, within=10, message="the chain's result is not there")
    assert {"done": bench.items} == result.parent.get(timeout=5)


def test_a_chord_fires_once_when_all_its_runs_have_ended(bench: Bench):
    bench.crew.celery("--pool", "prefork", "-c", "2")
    chord(group(_task(bench, "short-slices", pause=0.01) for _ in range(2)), _note(bench))()
    eventually(lambda: len(bench.kit.runs()) == 2, within=30, message=bench.crew.logs)
    for run in bench.kit.runs():
        assert RunState.SUCCEEDED == bench.wait_end(run)
    _check_noted(bench, ([{"done": bench.items}, {"done": bench.items}],))


def test_a_chain_survives_shutdowns_and_kills(bench: Bench):
    for _ in range(3):
        bench.crew.celery(*_ONE_CHILD)
    chain(_task(bench, "count", pause=0.3), _note(bench))()
    run = bench.run()
    bench.wait_done(run, at_least=20)
    first = bench.holder(run)
    first.send_all(signal.SIGTERM)
    bench.wait_done(run, at_least=80)
    bench.holder(run).send_all(signal.SIGKILL)
    bench.check(run)
    _check_noted(bench, ({"done": bench.items},))
    first.wait()


def test_a_killed_child_is_no_failure_to_those_who_wait(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    bench.send("count", kwargs={"pause": 0.1}, link=_note(bench), link_error=_task(bench, "errback"))
    run = bench.run()
    bench.wait_done(run, at_least=20)
    worker.send_children(signal.SIGKILL)
    bench.check(run)
    _check_noted(bench, ({"done": bench.items},))


def test_a_failure_is_told_once(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("fails", kwargs={"pause": 0.01}, link=_note(bench), link_error=_task(bench, "errback"))
    run = bench.run()
    assert RunState.FAILED == bench.wait_end(run)
    _check_noted(bench, ("errback",))
    assert "no third chunk" in str(run.error)


def test_copies_of_a_message_are_one_run(bench: Bench):
    for _ in range(3):
        bench.send("short-slices", task_id="the-same", kwargs={"pause": 0.02}, link=_note(bench))
    bench.crew.celery("--pool", "prefork", "-c", "2")
    run = bench.run()
    bench.check(run)
    _check_noted(bench, ({"done": bench.items},))
    # And one that comes after the end.
    bench.send("short-slices", task_id="the-same", kwargs={"pause": 0.02}, link=_note(bench))
    bench.send("note", args=("later",))
    _check_noted(bench, ({"done": bench.items},), ("later",))
    bench.check(bench.run())


def test_a_run_that_is_started_by_a_program_is_worked_and_leaves_no_result(bench: Bench, redis_url: str):
    bench.crew.celery(*_ONE_CHILD)
    run = bench.start("short-slices", pause=0.01)
    bench.check(run)
    with redis.Redis.from_url(redis_url) as client:
        assert [] == client.keys("celery-task-meta-*")


def test_progress_is_shown_where_celery_progress_looks(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    result = bench.celery.AsyncResult(bench.send("count", kwargs={"pause": 0.15}))
    seen: dict[str, Any] = eventually(
        lambda: result.state == "PROGRESS" and result.info, within=30, message=bench.crew.logs
    )
    assert {"pending", "current", "total", "percent", "description"} == set(seen)
    assert (bench.items, False) == (seen["total"], seen["pending"])
    assert 0 < seen["current"] <= bench.run().progress.done
    bench.check(bench.run())
    assert {"done": bench.items} == result.get(timeout=10)


def test_a_task_that_calls_a_job_goes_on_with_the_same_run_when_it_comes_again(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    for _ in range(2):
        bench.send("calls-a-job", task_id="caller", args=(0.01,))
    _check_noted_times(bench, "after the call", 2)
    bench.check(bench.run())


def _check_noted_times(bench: Bench, what: str, count: int) -> None:
    noted = {repr((what,)): count}
    eventually(lambda: bench.calls() == noted, within=30, message=bench.crew.logs)


def test_to_revoke_a_message_is_to_cancel_its_run(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    sent = bench.send("short-slices", kwargs={"pause": 0.2}, link=_note(bench))
    run = bench.run()
    bench.wait_done(run, at_least=10)
    bench.celery.control.revoke(sent)
    assert RunState.CANCELLED == bench.wait_end(run)
    assert {} == bench.calls()


def test_a_revoked_message_is_not_sent_for_ever(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    sent = bench.send("short-slices", kwargs={"pause": 0.2})
    run = bench.run()
    bench.wait_done(run, at_least=10)
    bench.celery.control.revoke(sent)
    assert RunState.CANCELLED == bench.wait_end(run)
    if not ledger.is_announced(bench.database):
        ledger.let_announcement_be_due(bench.database)
    eventually(lambda: ledger.is_announced(bench.database), within=30, message=worker.log)


def test_a_message_that_is_sent_again_is_as_its_sender_made_it(bench: Bench, redis_url: str):
    worker = bench.crew.celery(*_ONE_CHILD)
    bench.send("count", kwargs={"pause": 0.2}, kwargsrepr="{hidden}", headers={"mine": 1}, priority=3)
    bench.wait_done(bench.run(), at_least=10)
    worker.send(signal.SIGTERM)
    worker.wait()
    with redis.Redis.from_url(redis_url) as client:
        queues = client.keys(f"{bench.crew.env['TEST_QUEUE']}*")
        # A stopping worker that is slow may receive it once more, and sends that on too.
        messages = [json.loads(each) for key in queues for each in client.lrange(key, 0, -1)]
    assert messages
    for message in messages:
        assert ("{hidden}", 1) == (message["headers"]["kwargsrepr"], message["headers"]["mine"])
        assert 3 == message["properties"]["priority"]


def test_a_paused_run_parks_its_message(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    chain(_task(bench, "count", pause=0.15), _note(bench))()
    run = bench.run()
    bench.wait_done(run, at_least=10)
    run.pause()
    eventually(lambda: run.refresh().state is RunState.PAUSED, within=10, message=bench.crew.logs)
    assert {} == bench.calls()
    _resume(bench, run)
    bench.check(run)
    _check_noted(bench, ({"done": bench.items},))


def _resume(bench: Bench, run: Run) -> None:
    """Resume it through the queue of the app, whose workers are to go on with it."""
    bench.command("resume", run.id, "--detach")


def test_a_flushed_broker_costs_time_and_no_work(bench: Bench, redis_url: str):
    run = bench.start("short-slices", pause=0.01)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    bench.crew.celery(*_ONE_CHILD)
    bench.check(run)


def test_a_broker_that_is_down_at_the_hand_over_costs_time_and_no_work(bench: Bench, redis_server: RedisServer):
    worker = bench.crew.celery(*_ONE_CHILD)
    run = bench.start("count", pause=0.15)
    bench.wait_done(run, at_least=10)
    redis_server.stop()
    worker.send_all(signal.SIGTERM)
    eventually(lambda: run.refresh().state is RunState.QUEUED, within=30, message=bench.crew.logs)
    redis_server.restart()
    bench.crew.celery(*_ONE_CHILD)
    bench.check(run)


def test_other_peoples_tasks_behave_as_before(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    bench.start("short-slices", pause=0.01)
    bench.check(bench.run())
    bench.send("sleeps", args=(1.5,))
    eventually(lambda: bench.calls() == {repr(("sleeps begins",)): 1}, within=30, message=bench.crew.logs)
    worker.send(signal.SIGTERM)
    assert 0 == worker.wait()
    # A warm shutdown lets it end, as it does without batchkit.
    assert {repr(("sleeps begins",)): 1, repr(("sleeps ends",)): 1} == bench.calls()


def test_params_that_do_not_fit_fail_the_task_and_start_no_run(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("short-slices", kwargs={"pauze": 1}, link_error=_task(bench, "errback"))
    _check_noted(bench, ("errback",))
    assert [] == bench.kit.runs()
    assert "pauze" in bench.crew.logs()


def test_a_database_that_is_away_keeps_the_message(bench: Bench):
    bench.send("short-slices", kwargs={"pause": 0.01}, link=_note(bench))
    url = f"{bench.database}_not_there"
    lost = bench.crew.celery(*_ONE_CHILD, env={"TEST_DATABASE": url})
    eventually(lambda: "a message comes again" in lost.whole_log(), within=30, message=bench.crew.logs)
    lost.send(signal.SIGTERM)
    lost.wait()
    bench.crew.celery(*_ONE_CHILD)
    bench.check(bench.run())
    _check_noted(bench, ({"done": bench.items},))


@pytest.mark.parametrize(
    ("options", "env"),
    [
        (("--autoscale", "2,1"), {}),
        (("-c", "1", "--max-tasks-per-child", "1"), {}),
        (("-c", "1"), {"CONF_WORKER_POOL_START_METHOD": '"spawn"'}),
        (("-c", "1"), {"C_FORCE_ROOT": "1", "CONF_TASK_SERIALIZER": '"pickle"', "CONF_ACCEPT_CONTENT": '["pickle"]'}),
    ],
    ids=["autoscale", "max-tasks-per-child", "spawn", "pickle"],
)
def test_workers_of_all_kinds_work_slices(bench: Bench, options: tuple[str, ...], env: dict[str, str]):
    bench.crew.env.update(env)
    first = bench.crew.celery("--pool", "prefork", *options)
    bench.crew.celery("--pool", "prefork", *options)
    run = bench.start("short-slices", pause=0.1)
    bench.wait_done(run, at_least=20)
    first.send_all(signal.SIGTERM)
    first.wait()
    bench.check(run)


def test_a_message_goes_on_in_the_queue_that_it_was_sent_to(bench: Bench):
    """Sent again by slices and by sweeps, it stays where the program that sent it wanted it."""
    bench.crew.celery(*_ONE_CHILD, "-Q", "low")
    bench.send("short-slices", kwargs={"pause": 0.02}, queue="low", priority=3)
    bench.check(bench.run())
    assert 1 < bench.run().progress.interruptions


def test_a_message_goes_on_over_the_exchange_that_it_was_sent_to(bench: Bench):
    queues = {"media": {"exchange": "media", "exchange_type": "topic", "routing_key": "media.#"}}
    bench.celery.conf.task_queues = queues
    bench.crew.celery(*_ONE_CHILD, env={"CONF_TASK_QUEUES": json.dumps(queues)})
    bench.send("short-slices", kwargs={"pause": 0.0}, queue="media", routing_key="media.video")
    bench.check(bench.run())


def test_a_soft_time_limit_is_an_interruption(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("slow-once", soft_time_limit=2)
    run = bench.run()
    bench.check(run)
    assert 1 <= run.progress.interruptions


def test_a_hard_time_limit_is_an_interruption(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("slow-once", time_limit=2, link_error=_task(bench, "errback"))
    run = bench.run()
    bench.check(run)
    assert {repr(("slow",)): 1} == bench.calls()


def test_autoretry_does_not_keep_a_failure_from_being_told(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    bench.send("auto", kwargs={"pause": 0.0}, link_error=_task(bench, "errback"))
    assert RunState.FAILED == bench.wait_end(bench.run())
    _check_noted(bench, ("errback",))
    assert "autoretry_for does nothing for auto" in worker.whole_log()


def test_a_task_that_is_tried_again_goes_on_with_the_run_that_failed(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    result = bench.celery.AsyncResult(bench.send("tries-a-job-again", kwargs={"pause": 0.0}))
    assert bench.items == result.get(timeout=60)
    bench.check(bench.run())


def test_a_task_that_is_applied_in_a_chunk_leaves_the_slice_its_signals(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    run = bench.start("applies", pause=0.2)
    bench.wait_done(run, at_least=20)
    worker.send_children(signal.SIGTERM)
    bench.check(run)
    assert "a child was lost" not in worker.whole_log()


def test_a_child_that_is_killed_before_the_run_is_written_loses_no_start(bench: Bench):
    worker = bench.crew.celery(*_ONE_CHILD)
    with ledger.runs_locked(bench.database):
        bench.send("count", kwargs={"pause": 0.0}, link=_note(bench), link_error=_task(bench, "errback"))
        eventually(lambda: ledger.is_lock_wanted(bench.database), within=30, message=bench.crew.logs)
        worker.send_children(signal.SIGKILL)
        eventually(lambda: "a child was lost" in worker.whole_log(), within=30, message=bench.crew.logs)
    bench.check(bench.run())
    _check_noted(bench, ({"done": bench.items},))


def test_an_id_that_started_a_run_of_another_job_is_refused(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("count", task_id="nightly", kwargs={"pause": 0.0})
    bench.check(bench.run())
    bench.send("short-slices", task_id="nightly", kwargs={"pause": 0.0}, link_error=_task(bench, "errback"))
    _check_noted(bench, ("errback",))
    assert "give each message an id of its own" in bench.crew.logs()
    bench.check(bench.run())


def test_a_chunk_that_calls_its_own_job_starts_a_run_of_it(bench: Bench):
    bench.crew.celery(*_ONE_CHILD)
    bench.send("nests", kwargs={"depth": 1}, link=_note(bench))
    _check_noted(bench, (None,))
    assert [RunState.SUCCEEDED] * 2 == [run.state for run in bench.kit.runs()]
    assert {1: bench.items} == ledger.times(bench.database)


def test_long_params_are_cut_in_what_people_see(bench: Bench, redis_url: str):
    bench.celery.conf.task_default_queue = bench.crew.env["TEST_QUEUE"]
    bench.command("start", "takes-text", f"text={'x' * 100_000}")
    with redis.Redis.from_url(redis_url) as client:
        (message,) = client.lrange(bench.crew.env["TEST_QUEUE"], 0, -1)
    assert 10_000 > len(message)
