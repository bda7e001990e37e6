"""Starting runs, changing their state and reading them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchkit.errors import IllegalTransition, LeaseLost, RunNotFound
from batchkit.model import NewRun, RunError, RunId
from batchkit.states import TRANSITIONS, RunState
from tests.store.conftest import Bench

_ERROR = RunError(type="ValueError", message="bad", traceback="...", partition=0, cursor=None)


def _into(bench: Bench, state: RunState) -> RunId:
    """Make a run and bring it into *state* by what brings runs there."""
    run_id = bench.start()
    if state is RunState.PAUSED:
        bench.store.runs.pause(run_id)
    elif state is RunState.CANCELLED:
        bench.store.runs.cancel(run_id)
    elif state is not RunState.QUEUED:
        lease = bench.claim(run_id)
        if state is RunState.SUCCEEDED:
            bench.store.leases.release(lease, is_exhausted=True, reason="done")
        elif state is RunState.FAILED:
            bench.store.leases.fail(lease, _ERROR, worker="worker")
    assert state == bench.store.records.load(run_id).state
    return run_id


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize("wanted", [RunState.PAUSED, RunState.CANCELLED, RunState.QUEUED])
def test_people_can_do_what_the_table_of_transitions_allows_and_nothing_else(
    bench: Bench, state: RunState, wanted: RunState
):
    runs = bench.store.runs
    ask: Callable[[RunId], RunState] = {
        RunState.PAUSED: runs.pause,
        RunState.CANCELLED: runs.cancel,
        RunState.QUEUED: runs.resume,
    }[wanted]
    run_id = _into(bench, state)
    # running -> queued is an interruption, which is not a person's to make.
    allowed = (state, wanted) in TRANSITIONS and (state, wanted) != (RunState.RUNNING, RunState.QUEUED)
    if allowed:
        ask(run_id)
    else:
        with pytest.raises(IllegalTransition) as refused:
            ask(run_id)
        assert (state.value, wanted.value) == (refused.value.current, refused.value.wanted)
        assert state == bench.store.records.load(run_id).state


def test_every_change_is_recorded_with_its_reason(bench: Bench):
    run_id = bench.start()
    lease = bench.claim(run_id)
    bench.store.leases.fail(lease, _ERROR, worker="worker")
    bench.store.runs.resume(run_id)
    bench.store.runs.cancel(run_id)

    history = bench.store.records.history(run_id)
    for change in history[1:]:
        assert (change.before, change.after) in TRANSITIONS
    assert ["claimed", "ValueError: bad", "resumed", "cancel requested"] == [each.reason for each in history[-4:]]


def test_resuming_a_failed_run_keeps_its_cursor_and_forgets_the_error(bench: Bench):
    lease, _ = bench.checkpoint(bench.claim(bench.start()), items=5)
    bench.store.leases.fail(lease, _ERROR, worker="worker")
    assert _ERROR == bench.store.records.load(lease.run_id).error

    bench.store.runs.resume(lease.run_id)
    record = bench.store.records.load(lease.run_id)
    assert (None, None, RunState.QUEUED) == (record.error, record.finished_at, record.state)
    assert ("5", 5) == (bench.claim(lease.run_id).cursor, record.progress.done)


def test_a_pause_that_workers_have_not_seen_can_be_taken_back(bench: Bench):
    lease = bench.claim(bench.start())
    bench.store.runs.pause(lease.run_id)
    assert RunState.RUNNING == bench.store.runs.resume(lease.run_id)

    _, standing = bench.checkpoint(lease)
    assert standing.goes_on


def test_a_cancel_beats_a_pause_and_is_not_undone_by_one(bench: Bench):
    lease = bench.claim(bench.start())
    bench.store.runs.cancel(lease.run_id)
    bench.store.runs.pause(lease.run_id)

    assert RunState.CANCELLED == bench.store.leases.release(lease, reason="requested")


def test_a_request_on_a_run_whose_worker_died_is_settled_at_once_and_for_good(bench: Bench):
    dead = bench.claim(bench.start())
    bench.pass_time(11)
    assert RunState.PAUSED == bench.store.runs.pause(dead.run_id)
    # Even if the clock were set back, the one that was taken for dead stays out.
    bench.pass_time(-11)
    with pytest.raises(LeaseLost):
        bench.checkpoint(dead)
    assert RunState.PAUSED == bench.store.records.load(dead.run_id).state


def test_a_sweep_finds_runs_without_a_live_lease_and_queues_them(bench: Bench):
    held, dead = bench.claim(bench.start(), seconds=100), bench.claim(bench.start(), seconds=10)
    assert [] == bench.store.runs.unattended(limit=10)
    bench.pass_time(11)

    assert [dead.run_id] == bench.store.runs.unattended(limit=10)
    assert RunState.QUEUED == bench.store.runs.settle_unattended(dead.run_id)
    assert RunState.RUNNING == bench.store.runs.settle_unattended(held.run_id)
    assert [dead.run_id] == [wake_up.run_id for wake_up in bench.store.wake_ups.overdue(limit=10)]
    assert 1 == bench.store.records.load(dead.run_id).progress.interruptions


def test_a_run_with_two_partitions_ends_with_the_last_of_them(bench: Bench):
    run_id = bench.start(ranges=2)
    first, second = bench.claim(run_id, 0), bench.claim(run_id, 1)

    assert RunState.RUNNING == bench.store.leases.release(first, is_exhausted=True, reason="done")
    assert RunState.SUCCEEDED == bench.store.leases.release(second, is_exhausted=True, reason="done")


def test_finish_is_claimable_only_after_the_last_item(bench: Bench):
    run_id = bench.start(ranges=2, has_finish=True)
    first, second = bench.claim(run_id, 0), bench.claim(run_id, 1)
    bench.store.leases.release(first, is_exhausted=True, reason="done")
    assert [] == bench.store.leases.claimable_in(run_id)

    assert RunState.QUEUED == bench.store.leases.release(second, is_exhausted=True, reason="done")
    assert [2] == bench.store.leases.claimable_in(run_id)


def test_a_failed_partition_fails_the_run_and_the_others_end_at_their_next_boundary(bench: Bench):
    run_id = bench.start(ranges=2)
    failing, other = bench.claim(run_id, 0), bench.claim(run_id, 1)
    bench.store.leases.fail(failing, _ERROR, worker="worker")
    other, standing = bench.checkpoint(other)

    assert not standing.goes_on
    assert RunState.FAILED == bench.store.leases.release(other, reason="the run is failed")


def test_a_pause_while_another_partition_is_held_waits_for_it(bench: Bench):
    run_id = bench.start(ranges=2)
    first, second = bench.claim(run_id, 0), bench.claim(run_id, 1)
    bench.store.runs.pause(run_id)

    assert RunState.RUNNING == bench.store.leases.release(first, reason="requested")
    assert RunState.PAUSED == bench.store.leases.release(second, reason="requested")


def test_the_end_of_the_work_beats_a_pause(bench: Bench):
    lease = bench.claim(bench.start())
    bench.store.runs.pause(lease.run_id)

    assert RunState.SUCCEEDED == bench.store.leases.release(lease, is_exhausted=True, reason="done")


def test_an_unknown_run_is_named(bench: Bench):
    for ask in (bench.store.records.load, bench.store.runs.pause, bench.store.runs.resume, bench.store.runs.cancel):
        with pytest.raises(RunNotFound, match="nowhere"):
            ask(RunId("nowhere"))


def test_the_newest_runs_come_first_and_can_be_narrowed(bench: Bench):
    ids = [bench.start() for _ in range(3)]
    bench.store.runs.cancel(ids[0])
    bench.store.starts.create(NewRun(job="another", params="{}", queue="default", delivery="exactly-once"))
    newest = bench.store.records.newest

    assert 4 == len(newest(limit=10))
    assert ids[::-1] == [record.id for record in newest(job="job", limit=10)]
    assert [ids[0]] == [record.id for record in newest(states=[RunState.CANCELLED], limit=10)]
    assert 2 == len(newest(limit=2))


def test_rate_and_workers_are_those_of_live_leases_only(bench: Bench):
    lease, _ = bench.checkpoint(bench.claim(bench.start()))
    progress = bench.store.records.load(lease.run_id).progress
    assert (1, 1.0) == (progress.workers, progress.rate)
    bench.pass_time(11)

    progress = bench.store.records.load(lease.run_id).progress
    assert (0, None, None) == (progress.workers, progress.rate, progress.eta)
