"""Ranges that are wanted cut by one and cut by another: each order of a thief against an owner and against others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest

from batchkit.errors import LeaseLost
from batchkit.model import Lease, NewRun, Plan, Range, RunError, RunId, Standing
from batchkit.states import PartitionKind, PartitionState, RunState
from batchkit.store import HeldConnection
from tests.servers.locks import anybody_waits
from tests.store.conftest import Bench, next_checkpoint
from tests.waiting import eventually


def _start(bench: Bench, *, partitions: int = 4, max_workers: int | None = None, has_finish: bool = False) -> RunId:
    """Start a run of 100 items, of which the first of two ranges has 90."""
    new = NewRun(
        job="job", params="{}", queue="q", delivery="exactly-once", partitions=partitions, max_workers=max_workers
    )
    bench.store.starts.create(new)
    ranges = tuple(Range(*each) for each in pairwise(["-1", "89", "99"]))
    plan = Plan(ranges=ranges, total=100, has_finish=has_finish)
    lease = bench.store.leases.plan(bench.claim(new.id), plan)
    bench.store.leases.release(lease, reason="planned", is_interrupt=False)
    return new.id


def _checkpoint(bench: Bench, lease: Lease, *, cursor: int) -> tuple[Lease, Standing]:
    held = HeldConnection(bench.store.database, lease.run_id)
    try:
        held.begin(idle=60)
        items = cursor - int(lease.cursor or -1)
        checkpoint = replace(next_checkpoint(lease, items=items), cursor=str(cursor), chunk_seconds=2.0)
        moved = bench.store.leases.checkpoint(held, lease, checkpoint)
        held.commit()
        return moved
    finally:
        held.close()


def _want(bench: Bench, run_id: RunId, number: int, *, cuts: int = 1) -> bool:
    (victim,) = [each for each in bench.store.stealing.worked(run_id, limit=100) if each.number == number]
    return bench.store.stealing.want_cuts(run_id, victim, cuts=cuts)


def _ranges(bench: Bench, run_id: RunId) -> list[tuple[int, object, object]]:
    found = bench.store.records.partitions(run_id)
    return [(each.number, each.cursor, each.until) for each in found if each.kind is PartitionKind.ITEMS]


# What a run lacks


def test_nothing_is_missing_while_a_range_waits_and_then_no_more_than_are_worked(bench: Bench):
    run_id = _start(bench, partitions=10)
    missing = bench.store.stealing.missing

    assert 0 == missing(run_id)
    first = bench.claim(run_id, 0)
    assert 0 == missing(run_id)
    bench.claim(run_id, 1)
    assert 2 == missing(run_id)
    # What is wanted already is not missing.
    assert _want(bench, run_id, 0, cuts=7)
    assert 1 == missing(run_id)
    bench.store.leases.release(first, reason="interrupted")
    assert 0 == missing(run_id)


@pytest.mark.parametrize(("partitions", "max_workers"), [(3, None), (10, 3)])
def test_no_more_ranges_are_open_than_the_run_was_to_have_or_may_have_workers(
    bench: Bench, partitions: int, max_workers: int | None
):
    run_id = _start(bench, partitions=partitions, max_workers=max_workers)
    lease = bench.claim(run_id, 0)
    bench.claim(run_id, 1)

    assert 1 == bench.store.stealing.missing(run_id)
    bench.store.stealing.cut(lease, ["20", "40", "60"])
    assert [(0, -1, 40), (2, 40, 89), (1, 89, 99)] == _ranges(bench, run_id)
    assert 0 == bench.store.stealing.missing(run_id)


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_nothing_is_missing_of_a_run_that_is_to_stop_and_it_is_not_cut(bench: Bench, wish: str):
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    bench.claim(run_id, 1)
    getattr(bench.store.runs, wish)(run_id)

    assert 0 == bench.store.stealing.missing(run_id)
    assert lease == bench.store.stealing.cut(lease, ["40"])
    assert 2 == len(_ranges(bench, run_id))


def test_a_run_that_has_failed_is_not_cut_by_the_worker_that_still_works_it(bench: Bench):
    run_id = _start(bench)
    lease, other = bench.claim(run_id, 0), bench.claim(run_id, 1)
    error = RunError(type="ValueError", message="bad", traceback="", partition=1, cursor=None)
    bench.store.leases.fail(other, error, worker="worker")

    assert lease == bench.store.stealing.cut(lease, ["40"])
    assert 2 == len(_ranges(bench, run_id))


# A thief against an owner


def test_the_checkpoint_of_a_chunk_in_flight_commits_and_brings_the_wish_back(bench: Bench):
    """The thief comes between the owner's read and its checkpoint: the chunk is not lost, wherever the cut comes."""
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    held = HeldConnection(bench.store.database, run_id)
    if not bench.store.database.dialect.has_one_writer:
        # There the thief could not write while a chunk is in flight.
        held.begin(idle=60)
    assert _want(bench, run_id, 0, cuts=2)
    if bench.store.database.dialect.has_one_writer:
        held.begin(idle=60)
    checkpoint = replace(next_checkpoint(lease, items=81), cursor="80")
    moved, standing = bench.store.leases.checkpoint(held, lease, checkpoint)
    held.commit()
    held.close()

    assert (2, True) == (standing.cuts_wanted, standing.goes_on)
    shorter = bench.store.stealing.cut(moved, ["83", "86"])
    assert [(0, 80, 83), (3, 83, 86), (2, 86, 89), (1, 89, 99)] == _ranges(bench, run_id)
    assert ("83", moved.seq) == (shorter.until, shorter.seq)


def test_a_wish_before_the_read_and_one_after_the_commit_come_with_the_next_checkpoint(bench: Bench):
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    assert _want(bench, run_id, 0)
    lease, standing = _checkpoint(bench, lease, cursor=10)
    assert 1 == standing.cuts_wanted
    assert _want(bench, run_id, 0)
    lease, standing = _checkpoint(bench, lease, cursor=20)
    assert 2 == standing.cuts_wanted
    bench.store.stealing.leave_whole(lease)
    _, standing = _checkpoint(bench, lease, cursor=30)
    assert 0 == standing.cuts_wanted


def test_a_wish_waits_for_the_commit_of_a_checkpoint_and_comes_with_the_next(server_bench: Bench):
    bench = server_bench
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    held = HeldConnection(bench.store.database, run_id)
    held.begin(idle=60)
    moved, standing = bench.store.leases.checkpoint(held, lease, replace(next_checkpoint(lease), cursor="0"))
    assert 0 == standing.cuts_wanted
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(_want, bench, run_id, 0)
        eventually(lambda: _waits(bench), within=10, message="the wish does not wait for the checkpoint")
        held.commit()
        assert late.result(timeout=10)
    held.close()
    assert 1 == _checkpoint(bench, moved, cursor=10)[1].cuts_wanted


def _waits(bench: Bench) -> bool:
    with bench.store.database.connect() as tx:
        return anybody_waits(tx)


def test_a_wish_for_what_another_has_claimed_since_or_is_final_comes_to_nothing(bench: Bench):
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    (seen,) = bench.store.stealing.worked(run_id, limit=10)
    bench.store.leases.release(lease, reason="interrupted")
    lease = bench.claim(run_id, 0)

    assert not bench.store.stealing.want_cuts(run_id, seen, cuts=1)
    (seen,) = bench.store.stealing.worked(run_id, limit=10)
    bench.store.leases.release(lease, is_exhausted=True, reason="done")
    assert not bench.store.stealing.want_cuts(run_id, seen, cuts=1)


def test_a_wish_outlives_its_owner_and_is_seen_by_whoever_takes_over(bench: Bench):
    run_id = _start(bench)
    dead = bench.claim(run_id, 0)
    assert _want(bench, run_id, 0)
    bench.pass_time(11)
    heir = bench.claim(run_id, 0)
    heir, standing = _checkpoint(bench, heir, cursor=10)

    assert 1 == standing.cuts_wanted
    bench.store.stealing.cut(heir, ["49"])
    with pytest.raises(LeaseLost):
        bench.store.stealing.cut(replace(dead, until="89"), ["20"])
    assert [(0, 10, 49), (2, 49, 89), (1, 89, 99)] == _ranges(bench, run_id)


def test_two_thieves_at_once_have_no_more_cut_than_there_is_room_for(bench: Bench):
    run_id = _start(bench, partitions=3)
    lease = bench.claim(run_id, 0)
    bench.claim(run_id, 1)
    # Each has looked before the other has wanted anything.
    missing = [bench.store.stealing.missing(run_id) for _ in range(2)]
    (seen, *_) = bench.store.stealing.worked(run_id, limit=1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda cuts: bench.store.stealing.want_cuts(run_id, seen, cuts=cuts), missing))
    lease, standing = _checkpoint(bench, lease, cursor=9)

    assert 2 == standing.cuts_wanted
    bench.store.stealing.cut(lease, ["35", "62"])
    assert 3 == len(_ranges(bench, run_id))


# A cut against the rest


@pytest.mark.parametrize("how", ["it has expired", "another has claimed", "it was released", "it has moved on"])
def test_only_who_holds_the_partition_where_it_stands_cuts_it(bench: Bench, how: str):
    run_id = _start(bench)
    stale = bench.claim(run_id, 0)
    if how == "it was released":
        bench.store.leases.release(stale, reason="interrupted")
        bench.claim(run_id, 1)
    elif how == "it has moved on":
        _checkpoint(bench, stale, cursor=50)
    else:
        bench.pass_time(11)
        bench.claim(run_id, 0 if how == "another has claimed" else 1)
    before = _ranges(bench, run_id)

    with pytest.raises(LeaseLost):
        bench.store.stealing.cut(stale, ["40"])
    assert before == _ranges(bench, run_id)


def test_a_cut_that_is_sent_twice_happens_once(bench: Bench):
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    bench.store.stealing.cut(lease, ["40"])

    with pytest.raises(LeaseLost):
        bench.store.stealing.cut(lease, ["40"])
    assert [(0, -1, 40), (2, 40, 89), (1, 89, 99)] == _ranges(bench, run_id)


def test_giving_back_waits_for_a_cut_whose_commit_is_late_and_the_next_claim_knows_of_it(server_bench: Bench):
    """Its owner has lost the connection that cuts, and does not know whether it has cut."""
    bench = server_bench
    run_id = _start(bench)
    lease = bench.claim(run_id, 0)
    stealing, runs = bench.store.stealing, bench.store.runs
    with bench.store.database.transaction() as tx, ThreadPoolExecutor(1) as pool:
        runs.lock(tx, run_id)
        tx.execute(stealing._statements.shorten(lease, until="40"))  # noqa: SLF001  it is stopped before its commit
        stealing._insert(tx, lease, ["40"])  # noqa: SLF001  the same
        late = pool.submit(bench.store.leases.release, lease, reason="whether it was cut is not known")
        eventually(lambda: _waits(bench), within=10, message="the release does not wait for the cut")
        tx.commit()
        assert RunState.QUEUED is late.result(timeout=10)
    assert "40" == bench.claim(run_id, 0).until
    assert "89" == bench.claim(run_id, 2).until


def test_what_was_cut_off_keeps_the_run_and_its_finish_waiting(bench: Bench):
    run_id = _start(bench, has_finish=True)
    lease, other = bench.claim(run_id, 0), bench.claim(run_id, 1)
    bench.store.leases.release(other, is_exhausted=True, reason="done")
    lease = bench.store.stealing.cut(_checkpoint(bench, lease, cursor=10)[0], ["30", "60"])
    assert RunState.QUEUED is bench.store.leases.release(lease, is_exhausted=True, reason="done")

    # `finish` is number 2, and the ranges that were cut off come behind it.
    assert [4, 3] == sorted(bench.store.leases.claimable_in(run_id), reverse=True)
    for number in (3, 4):
        assert PartitionState.WAITING is _finish(bench, run_id)
        bench.store.leases.release(bench.claim(run_id, number), is_exhausted=True, reason="done")
    assert PartitionState.OPEN is _finish(bench, run_id)


def _finish(bench: Bench, run_id: RunId) -> PartitionState:
    (state,) = [each.state for each in bench.store.records.partitions(run_id) if each.kind is PartitionKind.FINISH]
    return state


def test_what_was_cut_off_begins_with_what_is_known_of_its_chunks_and_with_an_empty_carry(bench: Bench):
    run_id = _start(bench)
    lease, _ = _checkpoint(bench, replace(bench.claim(run_id, 0), carry='{"sum": 1}'), cursor=10)
    bench.store.stealing.cut(lease, ["40"])
    part = bench.claim(run_id, 2)

    assert (11, 2.0, "{}", 0) == (part.chunk_size, part.chunk_seconds, part.carry, part.done)


def test_a_run_is_not_cut_into_dust(bench: Bench):
    run_id = _start(bench, partitions=2)
    other = bench.claim(run_id, 1)
    bench.store.leases.release(other, is_exhausted=True, reason="done")
    lease = bench.claim(run_id, 0)
    for cursor in range(80):
        shorter = bench.store.stealing.cut(lease, [str(cursor)])
        if shorter == lease:
            break
        shorter, _ = _checkpoint(bench, shorter, cursor=cursor)
        bench.store.leases.release(shorter, is_exhausted=True, reason="done")
        lease = bench.claim(run_id, max(number for number, _, _ in _ranges(bench, run_id)))
    assert 2 * 32 == len(_ranges(bench, run_id))


def test_carries_come_in_the_order_of_the_items(bench: Bench):
    run_id = _start(bench, partitions=10)
    lease = bench.claim(run_id, 0)
    lease = bench.store.stealing.cut(lease, ["29", "59"])
    bench.store.stealing.cut(bench.claim(run_id, 3), ["39", "49"])
    bench.store.stealing.cut(lease, ["9", "19"])

    expected = [(-1, 9), (9, 19), (19, 29), (29, 39), (39, 49), (49, 59), (59, 89), (89, 99)]
    assert expected == [(cursor, until) for _, cursor, until in _ranges(bench, run_id)]
    work = [bench.claim(run_id, number) for number, _, _ in _ranges(bench, run_id) if number in (1, 2)]
    for each in work:
        held = HeldConnection(bench.store.database, run_id)
        held.begin(idle=60)
        checkpoint = replace(next_checkpoint(each), cursor=str(each.until), carry=f'{{"of": {each.number}}}')
        bench.store.leases.checkpoint(held, each, checkpoint)
        held.commit()
        held.close()
    with bench.store.database.reading() as tx:
        carries = [carry for carry, _, _, _ in bench.store.leases.carries(tx, work[0])]
    assert ["{}"] * 6 + ['{"of": 2}', '{"of": 1}'] == carries
