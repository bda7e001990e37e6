"""Whatever ends a Celery worker, by whatever signals: every item is done once, and nothing is marked failed."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from batchkit import RunState
from tests.queues.conftest import Bench
from tests.queues.workers import QueueWorker
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import eventually

_TERM, _KILL, _INT, _QUIT = signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT

Fault = Callable[[QueueWorker], object]


def _term_then_kill(worker: QueueWorker) -> None:
    worker.send(_TERM)
    worker.send_all(_KILL)


#: Faults of a worker, and whether its main process is to end of them.
FAULTS: dict[str, tuple[Fault, bool]] = {
    "SIGTERM main": (lambda worker: worker.send(_TERM), True),
    "SIGTERM all": (lambda worker: worker.send_all(_TERM), True),
    "SIGTERM children": (lambda worker: worker.send_children(_TERM), False),
    "SIGKILL child": (lambda worker: worker.send_children(_KILL), False),
    "SIGKILL main": (lambda worker: worker.send(_KILL), True),
    "SIGKILL all": (lambda worker: worker.send_all(_KILL), True),
    "SIGTERM then SIGKILL": (_term_then_kill, True),
    "SIGINT main": (lambda worker: worker.send(_INT), True),
    "SIGINT all": (lambda worker: worker.send_all(_INT), True),
    "SIGQUIT main": (lambda worker: worker.send(_QUIT), True),
    "SIGQUIT all": (lambda worker: worker.send_all(_QUIT), True),
}
REMAP = {"REMAP_SIGTERM": "SIGQUIT"}
SOFT = {**REMAP, "CONF_WORKER_SOFT_SHUTDOWN_TIMEOUT": "2"}


def _hurt(bench: Bench, fault: str, *options: str, env: dict[str, str] | None = None) -> None:
    hurt, ends = FAULTS[fault]
    first = bench.crew.celery(*options, env=env)
    bench.send("count", kwargs={"pause": 0.15})
    run = bench.run()
    bench.wait_done(run, at_least=10)
    bench.crew.celery(*options, env=env)

    hurt(first)
    if ends:
        first.wait()
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
    run = bench.start("count", pause=0.15)
    bench.wait_done(run, at_least=10)
    rabbit_server.stop()
    first.send_all(_TERM)
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


@pytest.mark.parametrize("fault", ["SIGTERM main", "SIGTERM all"])
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_chunk_that_would_outlive_the_grace_is_handed_on_before_the_kill(bench: Bench, fault: str, pool: str):
    options = ("--pool", pool, "-c", "1")
    first = bench.crew.celery(*options, env={"BATCHKIT_GRACE_SECONDS": "3"})
    bench.send("slow-once")
    run = bench.run()
    eventually(lambda: bench.calls() == {repr(("slow",)): 1}, within=30, message=bench.crew.logs)
    hurt, _ = FAULTS[fault]
    hurt(first)
    first.wait()
    assert (RunState.QUEUED, 50) == (run.refresh().state, run.progress.done)
    bench.crew.celery(*options)
    bench.check(run)
