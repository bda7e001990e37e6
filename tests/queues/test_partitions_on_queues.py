"""The partitions of one run on the real workers of each queue, which are killed amid them."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from redis import Redis
from rq import Queue

from batchkit import Run, RunState
from batchkit.states import PartitionKind
from tests.queues import gating, ledger
from tests.queues.conftest import Bench
from tests.queues.workers import QueueWorker
from tests.waiting import eventually


def _on_celery(bench: Bench) -> list[QueueWorker]:
    return [bench.crew.celery("--pool", "prefork", "-c", "2") for _ in range(2)]


def _on_rq(bench: Bench) -> list[QueueWorker]:
    bench.app = "tests.queues.rq_app:kit"
    bench.crew.supervisor(bench.app)
    return [bench.crew.rq() for _ in range(3)]


def _on_local(bench: Bench) -> list[QueueWorker]:
    bench.app = "tests.queues.local_app:kit"
    return [bench.crew.work(bench.app, "--processes", "4")]


QUEUES: dict[str, Callable[[Bench], list[QueueWorker]]] = {"celery": _on_celery, "rq": _on_rq, "local": _on_local}


def _holders(run: Run) -> set[int]:
    names = [each.worker for each in run.partitions() if each.is_held and each.worker is not None]
    return {int(name.rsplit(":", 1)[1]) for name in names}


def _wait_for_holders(bench: Bench, run: Run, number: int) -> set[int]:
    return eventually(
        lambda: held if len(held := _holders(run)) >= number else set[int](),
        within=60,
        message=lambda: f"not {number} workers hold {run}: {run.partitions()}\n{bench.crew.logs()}",
    )


def _start(bench: Bench, job: str, *options: str) -> Run:
    return bench.kit.run(bench.command("start", job, *options))


@pytest.mark.parametrize("queue", QUEUES)
def test_several_workers_work_one_run_and_two_are_killed_and_each_item_is_done_once(bench: Bench, queue: str):
    QUEUES[queue](bench)
    run = _start(bench, "gated", "--partitions", "4")

    killed: set[int] = set()
    while len(killed) < 2:
        pid = min(_wait_for_holders(bench, run, 2) - killed, default=None)
        worker = next((each for each in bench.crew.workers if pid in each.children()), None)
        if pid is not None and worker is not None:
            killed.add(pid)
            worker.send_child(pid, signal.SIGKILL)
    ledger.note(bench.database, gating.GO)
    bench.check(run)
    # Those that were behind at the gate may have been cut for the others.
    assert [50] * 4 == _done_by_first_ranges(run)


def _done_by_first_ranges(run: Run) -> list[int]:
    """Sum up what was done of each range that the run was planned with."""
    done: list[int] = []
    for each in run.partitions():
        if each.cut_from is None:
            done.append(0)
        done[-1] += each.done
    return done


@pytest.mark.parametrize("queue", QUEUES)
def test_other_workers_than_the_run_may_have_work_other_runs(bench: Bench, queue: str):
    QUEUES[queue](bench)
    run = _start(bench, "gated", "--partitions", "8", "--max-workers", "2")
    _wait_for_holders(bench, run, 2)

    # Two workers stand at the gate, and the others find nothing else to do.
    small = _start(bench, "small")
    assert RunState.SUCCEEDED == bench.wait_end(small), bench.crew.logs()
    assert (2, 0) == (run.refresh().progress.workers, run.progress.done)
    ledger.note(bench.database, gating.GO)
    bench.check(run)


def test_a_message_of_celery_tells_of_the_end_of_all_partitions(bench: Bench):
    _on_celery(bench)
    bench.send("in-parts", link=bench.celery.signature("note"))

    run = bench.run()
    bench.check(run)
    assert 4 == sum(each.kind is PartitionKind.ITEMS and each.cut_from is None for each in run.partitions())
    _check_noted(bench, {"done": bench.items})


def test_a_job_of_rq_ends_with_all_partitions(bench: Bench):
    _on_rq(bench)
    queue = Queue("default", connection=Redis.from_url(bench.broker))
    job = queue.enqueue("tests.queues.rq_app.in_parts")
    queue.enqueue("tests.queues.rq_app.note", "after", depends_on=job)

    run = bench.run()
    bench.check(run)
    assert 4 == sum(each.kind is PartitionKind.ITEMS and each.cut_from is None for each in run.partitions())
    _check_noted(bench, "after")
    assert {"done": bench.items} == job.return_value(refresh=True)


def _check_noted(bench: Bench, what: object) -> None:
    """See that those who waited for the end were called once, and soon."""
    eventually(bench.calls, within=30, message=lambda: f"nobody was called back\n{bench.crew.logs()}")
    assert {repr((what,)): 1} == dict(bench.calls())
