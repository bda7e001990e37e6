"""Who is busy, as the store says it, on each database."""

from __future__ import annotations

import json
from dataclasses import replace

from sqlalchemy import ClauseElement, Delete, event

from batchkit.busy import Busy, busy_facts
from batchkit.model import NewRun, Plan, Range, RunId
from batchkit.store import HeldConnection
from tests.store.conftest import Bench, next_checkpoint


def busy(bench: Bench) -> Busy:
    return bench.store.fleet.busy(["default"])


def move_on(bench: Bench, lease, *, chunk_seconds: float):
    held = HeldConnection(bench.store.database, lease.run_id)
    try:
        held.begin(idle=60)
        moved, _ = bench.store.leases.checkpoint(
            held, lease, replace(next_checkpoint(lease), chunk_seconds=chunk_seconds)
        )
        held.commit()
        return moved
    finally:
        held.close()


def claim(bench: Bench, run_id, number: int = 0, *, working: float | None = 8.0, is_protected: bool = False):
    lease = bench.store.leases.claim(
        run_id, number, worker="pod-1:7", seconds=10.0, working_seconds=working, is_protected=is_protected
    )
    assert lease is not None
    return lease


def test_an_empty_store_is_idle(bench: Bench):
    found = busy(bench)
    assert ["default"] == [each.queue for each in found.queues]
    assert (0, 0, 0, 0) == (found.queues[0].workers, found.queues[0].busy, found.queues[0].ready, len(found.slices))


def test_what_waits_is_ready_and_what_is_held_is_busy(bench: Bench):
    run_id = bench.start(ranges=3)
    bench.pass_time(5)
    claim(bench, run_id)
    queue = busy(bench).queue("default")
    assert (1, 2, 3) == (queue.busy, queue.ready, queue.wanted)
    # A sum is of another type in PostgreSQL, and no JSON.
    assert json.loads(json.dumps(busy_facts(busy(bench))))["queues"]["default"]["wanted"] == 3
    assert queue.oldest_waiting is not None
    assert 5 <= queue.oldest_waiting.total_seconds() < 60


def test_the_first_chunk_of_a_job_is_protected_and_the_next_is_not(bench: Bench):
    run_id = bench.start()
    lease = claim(bench, run_id)
    (held,) = busy(bench).slices
    assert (None, False) == (held.remaining, held.is_interruptible)
    lease = move_on(bench, lease, chunk_seconds=2.0)
    (held,) = busy(bench).slices
    assert held.is_interruptible
    assert held.remaining is not None
    assert 1.0 < held.remaining <= 2.0
    assert held.since <= held.checkpointed_at


def test_another_run_of_a_job_knows_how_long_its_chunks_take(bench: Bench):
    lease = move_on(bench, claim(bench, bench.start()), chunk_seconds=2.0)
    bench.store.leases.release(lease, reason="over", is_exhausted=True)
    other = bench.start()
    assert 2.0 == bench.store.leases.chunk_seconds(other, 0)
    claim(bench, other)
    assert busy(bench).slices[0].is_interruptible


def test_a_chunk_longer_than_the_grace_is_protected_until_it_is_nearly_over(bench: Bench):
    lease = bench.store.leases.claim(bench.start(), 0, worker="pod-1:7", seconds=600.0, working_seconds=8.0)
    assert lease is not None
    move_on(bench, lease, chunk_seconds=30.0)
    assert not busy(bench).slices[0].is_interruptible
    bench.pass_time(25)
    assert busy(bench).slices[0].is_interruptible
    bench.pass_time(60)
    assert not busy(bench).slices[0].is_interruptible, "it has overrun by far"


def test_where_nobody_says_how_long_the_platform_waits_all_is_protected(bench: Bench):
    lease = claim(bench, bench.start(), working=None)
    move_on(bench, lease, chunk_seconds=0.1)
    assert not busy(bench).slices[0].is_interruptible


def test_a_part_that_must_not_be_stopped_is_protected_while_it_lasts(bench: Bench):
    lease = move_on(bench, claim(bench, bench.start()), chunk_seconds=1.0)
    assert bench.store.leases.protect(lease, is_protected=True)
    assert not busy(bench).slices[0].is_interruptible
    assert bench.store.leases.protect(lease, is_protected=False)
    assert busy(bench).slices[0].is_interruptible


def test_a_worker_that_is_killed_drops_out_with_its_lease_and_its_work_is_ready(bench: Bench):
    claim(bench, bench.start())
    bench.pass_time(10.1)
    queue = busy(bench).queue("default")
    assert (0, 1, 1) == (queue.busy, queue.ready, queue.wanted)
    assert queue.oldest_waiting is not None
    assert queue.oldest_waiting.total_seconds() < 5, "it waits since the end of the lease"


def test_what_is_released_is_not_busy(bench: Bench):
    lease = claim(bench, bench.start())
    bench.store.leases.release(lease, reason="stopped", delay=60)
    queue = busy(bench).queue("default")
    assert (0, 0, 0) == (queue.busy, queue.ready, queue.wanted), "it is not due yet"


def test_what_is_postponed_is_still_wanted(bench: Bench):
    run_id = bench.start()
    bench.pass_time(60)
    bench.store.leases.postpone(run_id, 0, wake_no=None, seconds=20)
    queue = busy(bench).queue("default")
    assert (1, 1) == (queue.ready, queue.wanted)
    lease = claim(bench, run_id)
    bench.store.leases.postpone(run_id, 0, wake_no=None, seconds=20)
    assert bench.store.leases.renew(lease), "what is held is not postponed"


def test_leases_are_counted_by_instance(bench: Bench):
    run_id = bench.start(ranges=3)
    for number, worker in enumerate(["pod-1:7", "pod-1:8", "pod-10:7"]):
        bench.claim(run_id, number, worker=worker)
    fleet = bench.store.fleet
    assert (2, 1, 0) == (fleet.held_on("pod-1"), fleet.held_on("pod-10"), fleet.held_on("pod_1"))


def attend(bench: Bench, name: str = "pod-1:1", *, queues: list[str] | None = None, is_new: bool = False) -> bool:
    instance = name.rpartition(":")[0]
    return bench.store.fleet.attend(name, instance=instance, kind="celery", queues=queues, slots=4, is_new=is_new)


def test_an_idle_worker_is_there_until_it_leaves_or_falls_silent(bench: Bench):
    assert not attend(bench, queues=["default"])
    assert not attend(bench, "pod-2:1", queues=["mail"])
    assert (1, 1) == (busy(bench).queue("default").workers, busy(bench).queue("mail").workers)
    (worker, _) = busy(bench).workers
    assert ("pod-1:1", "pod-1", "celery", ("default",), 4) == (
        worker.name,
        worker.instance,
        worker.kind,
        worker.queues,
        worker.slots,
    )
    bench.store.fleet.leave("pod-2:1")
    assert 0 == busy(bench).queue("mail").workers
    bench.pass_time(36)
    assert [] == list(busy(bench).workers)
    assert not attend(bench, queues=["default"])
    assert 1 == len(busy(bench).workers)


def test_a_worker_for_all_queues_counts_for_each(bench: Bench):
    attend(bench)
    assert 1 == busy(bench).queue("whatever").workers


def test_the_busy_processes_of_a_worker_that_is_there_are_no_more_workers(bench: Bench):
    attend(bench)
    claim(bench, bench.start())
    assert 1 == busy(bench).queue("default").workers


def test_a_drain_is_seen_by_the_workers_of_the_instance(bench: Bench):
    attend(bench)
    attend(bench, "pod-2:1")
    assert 1 == bench.store.fleet.drain("pod-1")
    assert attend(bench)
    assert not attend(bench, "pod-2:1")
    assert [True, False] == [each.is_draining for each in busy(bench).workers]
    assert 0 == bench.store.fleet.drain("pod-3")
    bench.store.fleet.undrain("pod-1:1")
    assert not attend(bench)
    assert not any(each.is_draining for each in busy(bench).workers)


def test_a_drain_is_taken_back_for_all_workers_of_the_instance(bench: Bench):
    for name in ("pod-1:1", "pod-1:2", "pod-2:1"):
        attend(bench, name)
    bench.store.fleet.drain("pod-1")
    bench.store.fleet.drain("pod-2")
    bench.store.fleet.undrain_instance("pod-1")
    assert [False, False, True] == [attend(bench, name) for name in ("pod-1:1", "pod-1:2", "pod-2:1")]


def test_a_worker_with_the_name_of_a_dead_one_is_not_drained_for_that(bench: Bench):
    attend(bench, is_new=True)
    bench.store.fleet.drain("pod-1")
    # In a container that began anew the process id is the same.
    assert not attend(bench, is_new=True)
    assert not attend(bench)
    (worker,) = busy(bench).workers
    assert not worker.is_draining


def test_workers_that_were_killed_long_ago_are_forgotten(bench: Bench):
    attend(bench)
    bench.pass_time(4000)
    attend(bench, "pod-2:1", is_new=True)
    worker = bench.store.database.tables.worker
    with bench.store.database.reading() as tx:
        assert ["pod-2:1"] == list(tx.execute(worker.select()).scalars())


def test_workers_that_begin_remove_others_in_one_order_and_do_not_lock_each_other_out(bench: Bench):
    attend(bench, "pod-1:1")
    attend(bench, "pod-3:1")
    bench.pass_time(4000)
    removed: list[str] = []

    def note(_: object, statement: ClauseElement, __: object, params: dict[str, str], ___: object) -> None:
        if isinstance(statement, Delete):
            removed.extend(str(value) for value in statement.compile().params.values())

    event.listen(bench.store.database.engine, "before_execute", note)
    attend(bench, "pod-2:1", is_new=True)
    assert ["pod-1:1", "pod-2:1", "pod-3:1"] == removed


def start_shared(bench: Bench, *, ranges: int, max_workers: int | None) -> RunId:
    new = NewRun(
        job="job", params="{}", queue="default", delivery="exactly-once", partitions=ranges, max_workers=max_workers
    )
    bench.store.starts.create(new)
    lease = bench.claim(new.id)
    plan = Plan(ranges=tuple(Range() for _ in range(ranges)), total=100)
    bench.store.leases.release(bench.store.leases.plan(lease, plan), reason="planned", is_interrupt=False)
    return new.id


def test_a_run_wants_no_more_workers_than_it_may_have(bench: Bench):
    run_id = start_shared(bench, ranges=6, max_workers=2)
    assert (2, 2) == (busy(bench).queue("default").ready, busy(bench).queue("default").wanted)
    claim(bench, run_id, 0)
    claim(bench, run_id, 1)
    queue = busy(bench).queue("default")
    assert (2, 0, 2) == (queue.busy, queue.ready, queue.wanted)
    assert queue.oldest_waiting is None
    start_shared(bench, ranges=3, max_workers=None)
    assert (3, 5) == (busy(bench).queue("default").ready, busy(bench).queue("default").wanted)


def test_a_run_that_is_held_off_wants_no_worker(bench: Bench):
    run_id = start_shared(bench, ranges=3, max_workers=None)
    lease = claim(bench, run_id)
    bench.store.leases.release(lease, reason="held", delay=60, is_interrupt=False, is_waiting=True)
    assert 0 == busy(bench).queue("default").ready
    bench.pass_time(61)
    assert 3 == busy(bench).queue("default").ready
