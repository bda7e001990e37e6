"""Whatever ends a Celery worker, by whatever signals: every item is done once, and nothing is marked failed."""

from __future__ import annotations

import signal

import pytest

from batchkit import RunState
from tests.queues import faults, gating, ledger
from tests.queues.conftest import Bench
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import eventually

FAULTS = {**faults.FAULTS, **faults.QUITS}
REMAP = {"REMAP_SIGTERM": "SIGQUIT"}
SOFT = {**REMAP, "CONF_WORKER_SOFT_SHUTDOWN_TIMEOUT": "2"}


def _hurt(bench: Bench, fault: str, *options: str, env: dict[str, str] | None = None) -> None:
    what = FAULTS[fault]
    for _ in range(2):
        bench.crew.celery(*options, env=env)
    bench.send("outlasts", kwargs={"pause": 0.15})
    run = bench.run()
    bench.wait_done(run, at_least=10)

    victim = bench.holder(run)
    what.hurt(victim)
    if what.ends:
        victim.wait()
    ledger.note(bench.database, gating.GO)
    bench.check(run)
    assert 1 <= run.progress.interruptions
    assert {"done": bench.items} == run.result
    for worker in bench.crew.workers:
        assert "raised unexpected" not in worker.log()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_prefork_worker_is_ended(bench: Bench, fault: str):
    _hurt(bench, fault, "--pool", "prefork", "-c", "1")


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_prefork_worker_on_rabbitmq_is_ended(bench: Bench, fault: str):
    _hurt(bench, fault, "--pool", "prefork", "-c", "1")


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_rabbitmq_that_is_restarted_costs_time_and_no_work(bench: Bench, rabbit_server: RabbitServer):
    options = ("--pool", "prefork", "-c", "1")
    first = bench.crew.celery(*options)
    run = bench.start("count", pause=0.6)
    bench.wait_done(run, at_least=10)
    rabbit_server.stop()
    first.send_all(signal.SIGTERM)
    eventually(lambda: run.refresh().state is RunState.QUEUED, within=30, message=bench.crew.logs)
    first.end()
    rabbit_server.restart()
    bench.crew.celery(*options)
    bench.check(run)


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGTERM all"])
@pytest.mark.parametrize("env", [REMAP, SOFT], ids=["remapped", "soft"])
def test_a_prefork_worker_with_remapped_sigterm_is_ended(bench: Bench, fault: str, env: dict[str, str]):
    _hurt(bench, fault, "--pool", "prefork", "-c", "1", env=env)


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
@pytest.mark.parametrize(
    "fault", ["SIGTERM main", "SIGKILL main", "SIGTERM then SIGKILL", "SIGINT main", "SIGQUIT main"]
)
def test_a_worker_without_children_is_ended(bench: Bench, pool: str, fault: str):
    _hurt(bench, fault, "--pool", pool, "-c", "1")


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGQUIT main"])
def test_a_gevent_worker_with_a_soft_shutdown_is_ended(bench: Bench, fault: str):
    _hurt(bench, fault, "--pool", "gevent", "-c", "1", env=SOFT)


def test_the_handler_of_a_cold_shutdown_is_not_called_in_the_middle_of_a_greenlet(bench: Bench):
    first = bench.crew.celery("--pool", "gevent", "-c", "1")
    run = bench.start("quits")
    first.wait()
    bench.crew.celery("--pool", "gevent", "-c", "1")
    bench.check(run)
    assert {repr(("quit",)): 1, repr(("told in its turn",)): 1} == bench.calls()


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGTERM all"])
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_chunk_that_would_outlive_the_grace_is_handed_on_before_the_kill(bench: Bench, fault: str, pool: str):
    options = ("--pool", pool, "-c", "1")
    first = bench.crew.celery(*options, env={"BATCHKIT_GRACE_SECONDS": "3"})
    bench.send("slow-once")
    run = bench.run()
    eventually(lambda: bench.calls() == {repr(("slow",)): 1}, within=30, message=bench.crew.logs)
    FAULTS[fault].hurt(first)
    first.wait()
    assert (RunState.QUEUED, 50) == (run.refresh().state, run.progress.done)
    bench.crew.celery(*options)
    bench.check(run)
