"""An item that kills its worker is recorded as a failure on each queue, and every other item is done once."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from batchkit import RunState
from batchkit.suspicion import Suspicion
from tests.queues import ledger
from tests.queues.conftest import Bench
from tests.queues.killing import POISON
from tests.queues.workers import QueueWorker
from tests.waiting import eventually


def _on_celery(bench: Bench) -> QueueWorker:
    return bench.crew.celery("--pool", "prefork", "-c", "1")


def _on_rq(bench: Bench) -> QueueWorker:
    bench.app = "tests.queues.rq_app:kit"
    bench.crew.supervisor(bench.app)
    return bench.crew.rq()


def _on_local(bench: Bench) -> QueueWorker:
    bench.app = "tests.queues.local_app:kit"
    return bench.crew.work(bench.app, "--processes", "2")


QUEUES: dict[str, Callable[[Bench], QueueWorker]] = {"celery": _on_celery, "rq": _on_rq, "local": _on_local}


@pytest.mark.parametrize(
    ("queue", "way"),
    [
        ("celery", "exit"),
        ("celery", "segfault"),
        ("rq", "segfault"),
        ("rq", "kill"),
        ("local", "exit"),
        ("local", "kill"),
    ],
)
def test_an_item_that_kills_its_worker_is_recorded_and_every_other_is_done_once(bench: Bench, queue: str, way: str):
    QUEUES[queue](bench)
    run = bench.start("kills", way=way)

    assert RunState.SUCCEEDED == bench.wait_end(run), bench.crew.logs()
    assert {1: bench.items - 1, 0: 1} == ledger.times(bench.database)
    assert (bench.items - 1, 1) == (run.progress.done, run.progress.failed)
    (failure,) = run.failures()
    assert (str(POISON), "batchkit.errors.WorkerKilled") == (failure.item, failure.error_type)


def test_without_an_allowed_failure_the_run_fails_at_the_item(bench: Bench):
    _on_local(bench)
    run = bench.start("kills-and-fails", way="kill")

    assert RunState.FAILED == bench.wait_end(run), bench.crew.logs()
    assert run.error is not None
    assert ("batchkit.errors.WorkerKilled", str(POISON)) == (run.error.type, run.error.item)
    assert {1: POISON - 1, 0: bench.items - POISON + 1} == ledger.times(bench.database)


def _kill_children_first(bench: Bench, worker: QueueWorker) -> None:
    """Kill every process, in the order that shows the parent its child's death."""
    worker.send_children(signal.SIGKILL)
    worker.send(signal.SIGKILL)
    for each in bench.crew.workers:
        each.end()
    ledger.let_leases_run_out(bench.database)
    bench.command("recover")


def _wait_known(bench: Bench, is_so: Callable[[Suspicion], bool]) -> Suspicion:
    def find() -> Suspicion | None:
        known = ledger.suspicion(bench.database)
        return known if known is not None and is_so(known) else None

    found = eventually(find, within=60, message=lambda: f"{ledger.suspicion(bench.database)}\n{bench.crew.logs()}")
    assert found is not None
    return found


@pytest.mark.parametrize("workers", QUEUES.values(), ids=QUEUES)
def test_a_kill_of_every_process_is_no_proof_and_one_after_sigterm_does_not_count(
    bench: Bench, workers: Callable[[Bench], QueueWorker]
):
    worker = workers(bench)
    run = bench.start("kills", way="slow")
    bench.wait_done(run, at_least=POISON // 20 * 20)
    _kill_children_first(bench, worker)
    first = _wait_known(bench, lambda known: True)

    worker = workers(bench)
    _wait_known(bench, lambda known: known.entered is not None)
    worker.send(signal.SIGTERM)
    _wait_known(bench, lambda known: known.stopping == known.entered)
    _kill_children_first(bench, worker)
    second = _wait_known(bench, lambda known: known.booked > first.booked)
    assert () == second.ends

    worker = workers(bench)
    _wait_known(bench, lambda known: known.entered is not None and known.entered > second.booked)
    _kill_children_first(bench, worker)
    third = _wait_known(bench, lambda known: known.booked > second.booked)
    assert [False] == [end.is_of_child for end in third.ends]
    assert RunState.QUEUED == run.refresh().state
