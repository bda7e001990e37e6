"""What a lease allows, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from batchkit.errors import LeaseLost
from batchkit.model import Lease, NewRun, Plan, Range
from batchkit.states import PartitionState, Request, RunState
from batchkit.store import HeldConnection
from tests.store.conftest import Bench, next_checkpoint


def test_a_claim_raises_the_fence_and_makes_the_run_running(bench: Bench):
    run_id = bench.start()
    first = bench.claim(run_id)
    bench.store.leases.release(first, reason="test")
    second = bench.claim(run_id)

    assert first.fence + 1 == second.fence
    assert first.holder != second.holder
    assert RunState.RUNNING == bench.store.records.load(run_id).state


def test_a_live_lease_keeps_others_out(bench: Bench):
    run_id = bench.start()
    bench.claim(run_id)

    assert [] == bench.store.leases.claimable(jobs=["job"], queues=None)
    assert bench.store.leases.claim(run_id, 0, worker="other", seconds=10) is None


def test_an_ended_lease_is_taken_over_and_the_takeover_is_recorded(bench: Bench):
    run_id = bench.start()
    first = bench.claim(run_id, worker="first")
    bench.pass_time(11)
    second = bench.claim(run_id, worker="second")

    assert first.fence + 1 == second.fence
    assert 1 == bench.store.records.load(run_id).progress.interruptions
    assert "taken over: the lease of first ran out" == bench.store.records.history(run_id)[-1].reason


def test_a_checkpoint_moves_cursor_and_counters_together_and_renews_the_lease(bench: Bench):
    lease = bench.claim(bench.start())
    for _ in range(3):
        bench.pass_time(6)
        lease, standing = bench.checkpoint(lease, items=7)
        assert standing.goes_on

    (partition,) = bench.store.records.partitions(lease.run_id)
    assert (21, 21, True) == (partition.cursor, partition.done, partition.is_held)
    assert 21 == bench.store.records.load(lease.run_id).progress.done


def test_a_worker_that_slept_past_its_lease_cannot_commit_though_nobody_claimed(bench: Bench):
    lease = bench.claim(bench.start())
    bench.pass_time(11)

    with pytest.raises(LeaseLost):
        bench.checkpoint(lease)
    assert 0 == bench.store.records.load(lease.run_id).progress.done


def test_a_stale_worker_cannot_commit_renew_or_release_after_another_has_claimed(bench: Bench):
    stale = bench.claim(bench.start())
    bench.pass_time(11)
    owner = bench.claim(stale.run_id)

    with pytest.raises(LeaseLost):
        bench.checkpoint(stale)
    with pytest.raises(LeaseLost):
        bench.store.leases.release(stale, reason="stale")
    assert not bench.store.leases.renew(stale)
    owner, _ = bench.checkpoint(owner)
    assert 1 == owner.done


def test_the_number_of_a_fence_alone_does_not_make_an_owner(bench: Bench):
    # An asynchronous failover can lose a claim and give its number again.
    owner = bench.claim(bench.start())
    forged = Lease(**{name: getattr(owner, name) for name in Lease.__slots__} | {"holder": "somebody else"})

    with pytest.raises(LeaseLost):
        bench.checkpoint(forged)


def test_a_checkpoint_that_was_committed_already_is_refused(bench: Bench):
    lease = bench.claim(bench.start())
    bench.checkpoint(lease)

    with pytest.raises(LeaseLost):
        bench.checkpoint(lease)
    assert 1 == bench.store.leases.position(lease).seq


def test_a_renewal_moves_the_end_forward_and_never_backwards(bench: Bench):
    lease = bench.claim(bench.start(), seconds=10)
    assert bench.store.leases.renew(lease)
    before = bench.store.records.partitions(lease.run_id)[0].lease_expires_at
    bench.pass_time(-5)
    assert bench.store.leases.renew(lease)
    assert before == bench.store.records.partitions(lease.run_id)[0].lease_expires_at
    bench.pass_time(10)
    assert bench.store.leases.renew(lease)
    after = bench.store.records.partitions(lease.run_id)[0].lease_expires_at
    assert before is not None
    assert after is not None
    assert before < after


def test_a_renewal_does_not_bring_an_ended_lease_back(bench: Bench):
    lease = bench.claim(bench.start())
    bench.pass_time(11)

    assert not bench.store.leases.renew(lease)


def test_a_chunk_longer_than_its_lease_commits_if_it_was_renewed_meanwhile(server_bench: Bench):
    bench = server_bench
    lease = bench.claim(bench.start())
    held = HeldConnection(bench.store.database, lease.run_id)
    held.begin(idle=60)
    bench.pass_time(6)
    assert bench.store.leases.renew(lease)
    bench.pass_time(6)
    moved, _ = bench.store.leases.checkpoint(held, lease, next_checkpoint(lease))
    held.commit()
    held.close()

    assert 1 == moved.done


def test_on_sqlite_a_chunk_may_outlast_its_lease_since_nobody_can_claim_while_it_writes(sqlite_bench: Bench):
    bench = sqlite_bench
    lease = bench.claim(bench.start())
    held = HeldConnection(bench.store.database, lease.run_id)
    held.begin(idle=60)
    bench.pass_time(11)
    moved, _ = bench.store.leases.checkpoint(held, lease, next_checkpoint(lease))
    held.commit()
    held.close()

    assert 1 == moved.done
    assert bench.store.leases.position(lease).is_live


def test_the_moment_of_a_checkpoint_is_its_own_and_not_its_transactions_start(server_bench: Bench):
    bench = server_bench
    lease = bench.claim(bench.start())
    held = HeldConnection(bench.store.database, lease.run_id)
    held.begin(idle=60)
    bench.pass_time(11)
    with pytest.raises(LeaseLost):
        bench.store.leases.checkpoint(held, lease, next_checkpoint(lease))
    held.close()


def test_a_lost_lease_of_a_living_worker_makes_the_next_ones_longer_once(bench: Bench):
    lease = bench.claim(bench.start(), seconds=10)
    bench.pass_time(11)
    bench.store.leases.lengthen(lease)
    bench.store.leases.lengthen(lease)

    assert 20 == bench.claim(lease.run_id, seconds=10).seconds


def test_only_partitions_of_jobs_and_queues_asked_for_are_claimable(bench: Bench):
    run_id = bench.start()

    assert [(run_id, 0)] == bench.store.leases.claimable(jobs=["job", "other"], queues=["default"])
    assert [] == bench.store.leases.claimable(jobs=["other"], queues=None)
    assert [] == bench.store.leases.claimable(jobs=["job"], queues=["other"])
    assert [] == bench.store.leases.claimable(jobs=[], queues=None)


def test_a_released_run_goes_behind_those_that_wait(bench: Bench):
    first, second = bench.start(), bench.start()
    assert [(first, 0), (second, 0)] == bench.store.leases.claimable(jobs=["job"], queues=None)
    lease = bench.claim(first)
    bench.pass_time(1)
    bench.store.leases.release(lease, reason="its slice time is over")

    bench.pass_time(1)
    assert [(second, 0), (first, 0)] == bench.store.leases.claimable(jobs=["job"], queues=None)


def test_a_delayed_release_is_not_claimable_before_it_is_due(bench: Bench):
    lease = bench.claim(bench.start())
    bench.store.leases.release(lease, reason="declined", delay=30)

    assert [] == bench.store.leases.claimable(jobs=["job"], queues=None)
    bench.pass_time(31)
    assert [(lease.run_id, 0)] == bench.store.leases.claimable(jobs=["job"], queues=None)


def test_planning_happens_once(bench: Bench):
    new = NewRun(job="job", params="{}", queue="default", delivery="exactly-once")
    bench.store.starts.create(new)
    slow = bench.claim(new.id)
    bench.pass_time(11)
    quick = bench.claim(new.id)
    bench.store.leases.plan(quick, Plan(ranges=(Range(until="7"), Range(after="7")), total=9))

    with pytest.raises(LeaseLost):
        bench.store.leases.plan(slow, Plan(ranges=(Range(),), total=5))
    assert 9 == bench.store.records.load(new.id).progress.total
    assert 2 == len(bench.store.records.partitions(new.id))


def test_an_empty_plan_leaves_nothing_to_do(bench: Bench):
    new = NewRun(job="job", params="{}", queue="default", delivery="exactly-once")
    bench.store.starts.create(new)
    lease = bench.store.leases.plan(bench.claim(new.id), Plan(ranges=(), total=0))
    assert PartitionState.FINAL == bench.store.records.partitions(new.id)[0].state

    assert RunState.SUCCEEDED == bench.store.leases.release(lease, is_exhausted=True, reason="empty")


def test_a_partition_that_is_final_cannot_be_claimed(bench: Bench):
    run_id = bench.start(ranges=2)
    bench.store.leases.release(bench.claim(run_id), is_exhausted=True, reason="done")

    assert bench.store.leases.claim(run_id, 0, worker="w", seconds=1) is None
    assert [1] == bench.store.leases.claimable_in(run_id)


@pytest.mark.parametrize(("ask", "requested"), [(Request.PAUSE, RunState.PAUSED), (Request.CANCEL, RunState.CANCELLED)])
def test_a_checkpoint_brings_back_what_was_requested_and_the_release_settles_it(
    bench: Bench, ask: Request, requested: RunState
):
    lease = bench.claim(bench.start())
    asks: dict[Request, Callable[..., RunState]] = {
        Request.PAUSE: bench.store.runs.pause,
        Request.CANCEL: bench.store.runs.cancel,
    }
    assert RunState.RUNNING == asks[ask](lease.run_id)
    lease, standing = bench.checkpoint(lease)

    assert ask == standing.requested
    assert not standing.goes_on
    assert requested == bench.store.leases.release(lease, reason="requested")
    assert bench.store.leases.claim(lease.run_id, 0, worker="w", seconds=1) is None


def test_writes_before_a_refused_checkpoint_are_rolled_back_with_it(bench: Bench):
    with bench.store.database.transaction() as tx:
        tx.execute(text("CREATE TABLE ledger (item INTEGER)"))
    stale = bench.claim(bench.start())
    bench.pass_time(11)
    bench.claim(stale.run_id)
    held = HeldConnection(bench.store.database, stale.run_id)
    held.begin(idle=60)
    held.connection.execute(text("INSERT INTO ledger VALUES (1)"))
    with pytest.raises(LeaseLost):
        bench.store.leases.checkpoint(held, stale, next_checkpoint(stale))
    held.close()

    with bench.store.database.transaction() as tx:
        assert 0 == tx.execute(text("SELECT count(*) FROM ledger")).scalar()
