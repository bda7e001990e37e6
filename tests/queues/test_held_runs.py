"""A run that is held costs no worker of Celery's or RQ's, and what waits for it is told once, at its real end."""

from __future__ import annotations

from celery import chain
from redis import Redis
from rq import Callback, Queue
from sqlalchemy import insert

from batchkit import Run, RunState
from tests.queues import ledger
from tests.queues.conftest import Bench
from tests.waiting import eventually


def wait_held(bench: Bench) -> Run:
    """Wait until the only run is held, and give it."""
    run = bench.run()
    eventually(
        lambda: "until_go" in str(run.refresh().waiting_reason),
        within=30,
        message=lambda: f"{run} is not held\n{bench.crew.logs()}",
    )
    assert (RunState.QUEUED, 0) == (run.state, run.progress.workers)
    return run


def let_go(bench: Bench, run: Run) -> None:
    """Let the run go, and see that it has done each item once more than the other run."""
    with ledger.open_ledger(bench.database) as tx:
        tx.execute(insert(ledger.called), [{"what": "go"}])
    assert RunState.SUCCEEDED is bench.wait_end(run), bench.crew.logs()
    assert {2: bench.items} == ledger.times(bench.database), bench.crew.logs()
    assert (bench.items, 0) == (run.progress.done, run.progress.interruptions)


def test_a_held_run_leaves_the_only_child_of_a_celery_worker_to_others(bench: Bench):
    bench.crew.celery("--pool", "prefork", "-c", "1")
    signature = bench.celery.signature
    result = chain(signature("held", kwargs={"pause": 0}), signature("note"))()
    run = wait_held(bench)
    other = bench.start("count", pause=0)
    assert RunState.SUCCEEDED is bench.wait_end(other), bench.crew.logs()
    let_go(bench, run)
    eventually(result.successful, within=30, message=bench.crew.logs)
    assert 1 == bench.calls()[repr(({"done": bench.items},))]


def test_a_held_run_leaves_the_only_worker_of_rq_to_others(bench: Bench):
    bench.app = "tests.queues.rq_app:kit"
    bench.crew.rq()
    queue = Queue(connection=Redis.from_url(bench.broker))
    queue.enqueue("tests.queues.rq_app.held", pause=0, on_success=Callback("tests.queues.rq_app.on_success"))
    run = wait_held(bench)
    other = bench.start("tests.queues.rq_app.count", pause=0)
    assert RunState.SUCCEEDED is bench.wait_end(other), bench.crew.logs()
    bench.crew.supervisor(bench.app)
    let_go(bench, run)
    noted = repr(("success", {"done": bench.items}))
    eventually(lambda: bench.calls()[noted] == 1, within=30, message=bench.crew.logs)
