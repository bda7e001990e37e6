"""A run of which one partition has nine tenths of the work, on the real workers of each queue."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from batchkit import Run
from tests.queues import gating, ledger, skewed
from tests.queues.conftest import Bench
from tests.queues.test_partitions_on_queues import QUEUES, _start, _wait_for_holders
from tests.waiting import eventually

#: How many slices each queue's workers work at a time.
_WORKERS = {"celery": 4, "rq": 3, "local": 4}


def _begin(bench: Bench, queue: str) -> Run:
    """Have each worker stand at the gate, and open it."""
    QUEUES[queue](bench)
    run = _start(bench, "skewed")
    _wait_for_holders(bench, run, _WORKERS[queue])
    assert skewed.CUTS[0] == run.partitions()[0].until
    ledger.note(bench.database, gating.GO)
    return run


@pytest.mark.parametrize("queue", QUEUES)
def test_no_worker_does_much_more_than_the_others(bench: Bench, queue: str):
    run = _begin(bench, queue)

    bench.check(run)
    by_worker = Counter(each for each in ledger.calls(bench.database) if each.startswith("worker"))
    ideal = bench.items / _WORKERS[queue]
    assert _WORKERS[queue] == len(by_worker)
    # Where nothing is cut it is 3.6 times as much. How soon they end is for benchmarks/stealing.py to say: here other
    # tests have the processors as well.
    assert max(by_worker.values()) <= 2 * ideal, (by_worker, run.partitions())
    # Undivided it would have been 180.
    assert max(each.done for each in run.partitions()) <= 1.3 * ideal


@pytest.mark.parametrize("queue", QUEUES)
def test_owners_and_thieves_are_killed_and_each_item_is_done_once(bench: Bench, queue: str):
    run = _begin(bench, queue)
    for cut in range(1, 4):
        eventually(
            lambda: sum(each.cut_from is not None for each in run.partitions()) >= cut or run.refresh().has_ended,  # noqa: B023  called here and now
            within=60,
            message=lambda: f"{run.partitions()}\n{bench.crew.logs()}",
        )
        holders = {int(each.worker.rsplit(":", 1)[1]) for each in run.partitions() if each.is_held and each.worker}
        for worker in bench.crew.workers:
            pid = min(holders & set(worker.children()), default=None)
            if pid is not None:
                worker.send_child(pid, signal.SIGKILL)
                break
    bench.check(run)
    assert skewed.CUTS[0] > max(each.done for each in run.partitions())
