"""Which ends of workers count against a place, and what comes of them."""

from __future__ import annotations

import pytest

from batchkit.errors import LeaseLost, NothingToSkip
from batchkit.model import Lease, RunId
from batchkit.states import Request, RunState
from batchkit.suspicion import Death, Suspicion
from tests.store.conftest import Bench

_CHUNK = 4


def _known(bench: Bench, run_id: RunId, number: int = 0) -> Suspicion | None:
    """Read what is known of a partition."""
    statements = bench.store.leases._statements  # noqa: SLF001  nobody else has to read it without claiming
    with bench.store.database.reading() as tx:
        return Suspicion.read(tx.execute(statements.read_partition(run_id, number)).mappings().one()["suspicion"])


def _ends(bench: Bench, run_id: RunId) -> int:
    known = _known(bench, run_id)
    assert known is not None
    return len(known.ends)


def _dies(bench: Bench, lease: Lease, death: Death = Death.UNSEEN) -> None:
    """Let the worker be killed: its parent tells of it, or its lease runs out."""
    if death is Death.UNSEEN:
        bench.pass_time(lease.seconds + 1)
        bench.store.runs.settle_unattended(lease.run_id)
    else:
        bench.store.leases.end_leases_of("worker", lease.run_id, death=death)


def _enter(bench: Bench, lease: Lease, items: int = _CHUNK) -> Lease:
    return bench.store.suspects.enter(lease, items=items)


def _killed_in_place(bench: Bench, run_id: RunId, times: int, *, items: int, death: Death) -> None:
    for _ in range(times):
        _dies(bench, _enter(bench, bench.claim(run_id), items), death)


def _suspected(bench: Bench) -> RunId:
    """Start a run whose first place is suspect."""
    run_id = bench.start()
    _dies(bench, bench.claim(run_id))
    return run_id


def _narrowed(bench: Bench, death: Death = Death.CHILD) -> RunId:
    """Start a run whose first chunk has killed three workers."""
    run_id = _suspected(bench)
    _killed_in_place(bench, run_id, 3, items=_CHUNK, death=death)
    return run_id


def test_nothing_is_suspected_of_a_partition_whose_workers_give_it_back(bench: Bench):
    lease, _ = bench.checkpoint(bench.claim(bench.start()))
    bench.store.leases.release(lease, reason="interrupted")

    assert bench.claim(lease.run_id).suspicion is None


@pytest.mark.parametrize("by_sweep", [False, True], ids=["taken over", "swept"])
def test_an_unclean_end_makes_a_place_suspect_and_counts_nothing(bench: Bench, *, by_sweep: bool):
    lease = bench.claim(bench.start())
    bench.pass_time(11)
    if by_sweep:
        bench.store.runs.settle_unattended(lease.run_id)
    claimed = bench.claim(lease.run_id)

    assert Suspicion(place=0, booked=lease.fence) == claimed.suspicion


@pytest.mark.parametrize("by_sweep", [False, True], ids=["taken over", "swept"])
def test_an_end_counts_where_the_place_was_entered(bench: Bench, *, by_sweep: bool):
    run_id = _suspected(bench)
    _enter(bench, bench.claim(run_id))
    bench.pass_time(11)
    if by_sweep:
        bench.store.runs.settle_unattended(run_id)
    bench.claim(run_id)

    assert 1 == _ends(bench, run_id)


def test_an_end_before_the_place_was_entered_does_not_count(bench: Bench):
    run_id = _suspected(bench)
    _dies(bench, _enter(bench, bench.claim(run_id)))
    _dies(bench, bench.claim(run_id))

    assert 1 == _ends(bench, run_id)


@pytest.mark.parametrize("knows", ["the worker", "its parent"])
def test_an_end_in_a_shutdown_does_not_count_however_often_it_comes(bench: Bench, knows: str):
    run_id = _suspected(bench)
    for _ in range(10):
        lease = _enter(bench, bench.claim(run_id))
        if knows == "the worker":
            bench.store.suspects.stop(lease)
            _dies(bench, lease)
        else:
            _dies(bench, lease, Death.SHUTDOWN)

    assert 0 == _ends(bench, run_id)
    known = _known(bench, run_id)
    assert known is not None
    assert known.until is None


def test_a_shutdown_known_to_one_worker_says_nothing_of_the_next(bench: Bench):
    run_id = _suspected(bench)
    first = _enter(bench, bench.claim(run_id))
    bench.store.suspects.stop(first)
    _dies(bench, first)
    _dies(bench, _enter(bench, bench.claim(run_id)))

    assert 1 == _ends(bench, run_id)


def test_a_clean_end_between_does_not_clear_the_place(bench: Bench):
    run_id = _suspected(bench)
    _dies(bench, _enter(bench, bench.claim(run_id)))
    bench.store.leases.release(_enter(bench, bench.claim(run_id)), reason="interrupted")

    assert 1 == _ends(bench, run_id)


def test_a_stale_worker_that_is_alive_takes_its_count_back_though_others_have_died_since(bench: Bench):
    run_id = _suspected(bench)
    stale = _enter(bench, bench.claim(run_id))
    _dies(bench, stale)
    _dies(bench, _enter(bench, bench.claim(run_id)))
    assert 2 == _ends(bench, run_id)
    bench.store.suspects.take_back(stale)
    bench.store.suspects.take_back(stale)

    assert 1 == _ends(bench, run_id)


def test_a_worker_whose_lease_ran_out_unnoticed_takes_back_what_is_not_counted_yet(bench: Bench):
    run_id = _suspected(bench)
    stale = _enter(bench, bench.claim(run_id))
    bench.pass_time(11)
    bench.store.suspects.take_back(stale)
    bench.claim(run_id)

    assert 0 == _ends(bench, run_id)


def test_a_stale_worker_cannot_enter_or_tell_of_its_shutdown(bench: Bench):
    run_id = _suspected(bench)
    stale = _enter(bench, bench.claim(run_id))
    bench.pass_time(11)
    owner = _enter(bench, bench.claim(run_id))

    for change in (bench.store.suspects.stop, bench.store.suspects.forget):
        with pytest.raises(LeaseLost):
            change(stale)
    with pytest.raises(LeaseLost):
        _enter(bench, stale)
    assert owner.suspicion == _known(bench, run_id)


def test_three_ends_that_count_have_the_items_of_the_chunk_taken_one_at_a_time(bench: Bench):
    lease = bench.claim(_narrowed(bench, Death.UNSEEN))

    assert lease.suspicion is not None
    assert [True, True, False] == [lease.suspicion.takes_one(passed=passed) for passed in (0, _CHUNK - 1, _CHUNK)]
    assert _CHUNK == lease.chunk_size


def test_ends_at_one_place_do_not_count_at_the_next(bench: Bench):
    run_id = _suspected(bench)
    _killed_in_place(bench, run_id, 2, items=_CHUNK, death=Death.UNSEEN)
    lease, _ = bench.checkpoint(_enter(bench, bench.claim(run_id)))
    _dies(bench, lease)

    assert Suspicion(place=1, booked=lease.fence) == _known(bench, run_id)


def test_each_single_item_is_counted_by_itself(bench: Bench):
    run_id = _narrowed(bench)
    _killed_in_place(bench, run_id, 2, items=1, death=Death.CHILD)
    lease, _ = bench.checkpoint(_enter(bench, bench.claim(run_id), items=1))
    _dies(bench, _enter(bench, lease, items=1), Death.CHILD)

    lease = bench.claim(run_id)
    assert lease.suspicion is not None
    assert (1, 1) == (lease.suspicion.place, len(lease.suspicion.ends))
    assert not lease.suspicion.is_killer(place=lease.seq)


def test_an_item_that_killed_three_children_alone_is_passed(bench: Bench):
    run_id = _narrowed(bench)
    _killed_in_place(bench, run_id, 2, items=1, death=Death.CHILD)
    lease = bench.claim(run_id)
    assert lease.suspicion is not None
    assert not lease.suspicion.is_to_pass(place=0)
    _dies(bench, _enter(bench, lease, items=1), Death.CHILD)

    lease = bench.claim(run_id)
    assert lease.suspicion is not None
    assert lease.suspicion.is_to_pass(place=0)
    assert not lease.suspicion.is_to_pass(place=1)


@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_one_end_that_nobody_saw_leaves_the_item_to_a_person(bench: Bench, unseen: int):
    run_id = _narrowed(bench)
    for number in range(3):
        death = Death.UNSEEN if number == unseen else Death.CHILD
        _killed_in_place(bench, run_id, 1, items=1, death=death)

    record = bench.store.records.load(run_id)
    assert RunState.PAUSED == record.state
    assert record.waiting_reason is not None
    assert "partition 0" in record.waiting_reason
    assert record.waiting_reason == bench.store.records.history(run_id)[-1].reason


def test_a_takeover_pauses_the_run_instead_of_claiming(bench: Bench):
    run_id = _narrowed(bench, Death.UNSEEN)
    _killed_in_place(bench, run_id, 2, items=1, death=Death.UNSEEN)
    _enter(bench, bench.claim(run_id), items=1)
    bench.pass_time(11)

    assert bench.store.leases.claim(run_id, 0, worker="worker", seconds=10) is None
    assert RunState.PAUSED == bench.store.records.load(run_id).state


def test_a_pause_for_a_person_waits_for_the_other_partitions_workers(bench: Bench):
    run_id = bench.start(ranges=2)
    other = bench.claim(run_id, 1, seconds=1000.0, worker="other")
    _dies(bench, bench.claim(run_id), Death.CHILD)
    _killed_in_place(bench, run_id, 3, items=_CHUNK, death=Death.CHILD)
    _killed_in_place(bench, run_id, 2, items=1, death=Death.CHILD)
    _enter(bench, bench.claim(run_id), items=1)
    bench.pass_time(11)
    assert bench.store.leases.claim(run_id, 0, worker="worker", seconds=10) is None

    assert RunState.RUNNING == bench.store.records.load(run_id).state
    other, standing = bench.checkpoint(other)
    assert Request.PAUSE == standing.requested
    assert RunState.PAUSED == bench.store.leases.release(other, reason="requested", is_interrupt=False)


def test_a_cancel_is_not_turned_into_a_pause(bench: Bench):
    run_id = _narrowed(bench, Death.UNSEEN)
    _killed_in_place(bench, run_id, 2, items=1, death=Death.UNSEEN)
    lease = _enter(bench, bench.claim(run_id), items=1)
    bench.store.runs.cancel(run_id)
    _dies(bench, lease)

    assert RunState.CANCELLED == bench.store.records.load(run_id).state


def test_an_item_that_kills_while_it_is_recorded_is_left_to_a_person(bench: Bench):
    run_id = _narrowed(bench)
    _killed_in_place(bench, run_id, 4, items=1, death=Death.CHILD)

    assert RunState.PAUSED == bench.store.records.load(run_id).state


def test_a_resumed_run_starts_with_no_suspicion(bench: Bench):
    run_id = _narrowed(bench, Death.UNSEEN)
    _killed_in_place(bench, run_id, 3, items=1, death=Death.UNSEEN)
    bench.store.runs.resume(run_id)

    assert bench.claim(run_id).suspicion is None


def test_a_person_can_have_the_item_skipped(bench: Bench):
    run_id = _narrowed(bench, Death.UNSEEN)
    _killed_in_place(bench, run_id, 3, items=1, death=Death.UNSEEN)
    bench.store.runs.resume(run_id, skip=True)

    lease = bench.claim(run_id)
    assert lease.suspicion is not None
    assert lease.suspicion.is_to_pass(place=0)
    _dies(bench, _enter(bench, lease, items=1), Death.CHILD)
    assert RunState.PAUSED == bench.store.records.load(run_id).state


def test_there_is_nothing_to_skip_where_no_item_was_found(bench: Bench):
    run_id = _narrowed(bench, Death.UNSEEN)
    bench.store.runs.pause(run_id)

    with pytest.raises(NothingToSkip):
        bench.store.runs.resume(run_id, skip=True)
    assert RunState.PAUSED == bench.store.records.load(run_id).state
