"""The rule that tells protected work from interruptible, and how a worker's state is summed up."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit.busy import (
    BusySlice,
    PresentWorker,
    Waiting,
    busy_facts,
    is_interruptible,
    remaining_seconds,
    summed_up,
)
from batchkit.model import RunId
from batchkit.tracking.duty import Breaks
from batchkit.tracking.standing import SliceSeen, Standing, is_edge

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expected", "elapsed", "remaining"),
    [(10.0, 3.0, 7.0), (10.0, 0.0, 10.0), (10.0, 15.0, 0.0), (10.0, 21.5, None), (None, 0.0, None), (0.0, 0.9, 0.0)],
)
def test_a_chunk_that_overruns_by_far_is_one_of_which_nothing_is_known(
    expected: float | None, elapsed: float, remaining: float | None
):
    assert remaining == remaining_seconds(expected, elapsed)


@pytest.mark.parametrize(
    ("is_protected", "remaining", "working", "expected"),
    [
        (False, 5.0, 8.0, True),
        (False, 8.0, 8.0, True),
        (False, 9.0, 8.0, False),
        (True, 1.0, 8.0, False),
        (False, None, 8.0, False),
        (False, 1.0, None, False),
    ],
)
def test_what_is_not_known_counts_as_protected(
    is_protected: bool, remaining: float | None, working: float | None, expected: bool
):
    assert expected is is_interruptible(is_protected=is_protected, remaining=remaining, working=working)


def held(queue: str, *, interruptible: bool = True, instance: str = "pod-1") -> BusySlice:
    return BusySlice(
        run_id=RunId("r"),
        job="job",
        queue=queue,
        partition=0,
        worker=f"{instance}:7",
        instance=instance,
        since=NOW,
        checkpointed_at=NOW,
        remaining=1.0,
        is_interruptible=interruptible,
    )


def present(instance: str, *, queues: tuple[str, ...] | None = None) -> PresentWorker:
    return PresentWorker(f"{instance}:1", instance, "celery", queues, 2, NOW, NOW, is_draining=False)


def test_what_is_worked_and_what_waits_is_summed_up_by_queue():
    busy = summed_up(
        NOW,
        queues=["empty"],
        waiting=[Waiting("mail", 3, NOW - timedelta(seconds=9))],
        slices=[held("mail"), held("mail", interruptible=False), held("other", instance="pod-2")],
        workers=[present("pod-1", queues=("mail",))],
    )
    mail, other, empty = busy.queue("mail"), busy.queue("other"), busy.queue("empty")
    assert (1, 2, 1, 1, 3, 5) == (
        mail.workers,
        mail.busy,
        mail.interruptible,
        mail.protected,
        mail.ready,
        mail.wanted,
    )
    assert timedelta(seconds=9) == mail.oldest_waiting
    assert (1, 1, 0, 1) == (other.workers, other.busy, other.ready, other.wanted), "a worker that says nothing counts"
    assert (0, 0, 0, None) == (empty.workers, empty.busy, empty.wanted, empty.oldest_waiting)
    assert ["empty", "mail", "other"] == sorted(busy_facts(busy)["queues"])  # type: ignore[call-overload]
    assert 0 == busy.queue("never heard of").wanted


def test_wanted_never_leaves_out_what_is_worked():
    busy = summed_up(NOW, queues=[], waiting=[], slices=[held("mail")], workers=[])
    assert 1 == busy.queue("mail").wanted


# A worker's state


def standing(**slices: SliceSeen) -> Standing:
    made = Standing("pod-1:1", "pod-1", linger=5.0)
    made.slices = dict(enumerate(slices.values()))
    return made


def begun(**known: object) -> SliceSeen:
    slice_ = SliceSeen()
    Standing("w", "i", 0.0).hear(
        slice_, {"begins": True, "is_protected": False, "expected": 1.0, "working": 8.0, **known}, 0.0
    )
    return slice_


def test_a_worker_is_busy_at_once_and_idle_only_after_a_moment():
    worker = standing()
    assert not worker.state(0.0, is_draining=False).is_busy
    worker.slices[1] = begun()
    assert (0, 1) == counts(worker, 0.0)
    del worker.slices[1]
    assert (0, 1) == counts(worker, 4.9), "the next slice may begin right away"
    assert (0, 0) == counts(worker, 5.1)


def test_a_worker_that_is_drained_is_idle_at_once():
    worker = standing(one=begun())
    counts(worker, 0.0)
    worker.slices.clear()
    assert not worker.state(0.1, is_draining=True).is_busy


def test_a_chunk_that_takes_far_longer_than_expected_becomes_protected():
    worker = standing(one=begun(expected=1.0))
    assert (0, 1) == counts(worker, 0.5)
    assert (1, 0) == counts(worker, 3.5)


def test_a_slice_that_asks_counts_as_protected_before_it_has_claimed():
    worker = standing()
    slice_ = SliceSeen()
    worker.slices[1] = slice_
    worker.hear(slice_, {"asks": True}, 0.0)
    assert (1, 0) == counts(worker, 0.0)


def test_a_part_that_must_not_be_cut_short_protects_for_as_long_as_it_lasts():
    slice_ = begun(expected=4.0)
    worker = standing(one=slice_)
    worker.hear(slice_, {"is_protected": True}, 0.0)
    assert (1, 0) == counts(worker, 0.1)
    worker.hear(slice_, {"is_protected": False}, 0.2)
    assert (0, 1) == counts(worker, 5.3)


def test_a_checkpoint_is_seen_as_progress_and_the_beginning_is_not():
    slice_ = SliceSeen()
    worker = standing(one=slice_)
    assert not worker.hear(slice_, {"begins": True, "expected": None, "working": 8.0}, 0.0)
    assert worker.hear(slice_, {"expected": 1.0}, 0.5)


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["begin", "end", "protect", "release"])), max_size=30))
def test_a_worker_with_a_protected_slice_is_never_shown_as_free(steps: list[tuple[float, str]]):
    worker, now, number = standing(), 0.0, 0
    for pause, step in steps:
        now += pause
        if step == "begin":
            number += 1
            worker.slices[number] = begun(expected=1e9, working=1e9)
        elif step == "end" and worker.slices:
            worker.slices.popitem()
        elif worker.slices:
            worker.slices[max(worker.slices)].is_protected = step == "protect"
        state = worker.state(now, is_draining=False)
        truly = sum(each.is_protected for each in worker.slices.values())
        assert state.protected >= truly
        assert state.is_busy >= bool(worker.slices)


def counts(worker: Standing, now: float) -> tuple[int, int]:
    state = worker.state(now, is_draining=False)
    return state.protected, state.interruptible


def test_only_a_change_of_what_a_worker_is_counts_as_an_edge():
    worker = standing(one=begun())
    before = worker.state(0.0, is_draining=False)
    worker.slices[5] = begun()
    assert not is_edge(before, worker.state(0.1, is_draining=False)), "it was busy already"
    assert is_edge(before, worker.state(0.1, is_draining=True))
    assert is_edge(None, before)


# The times in which nobody is protected


def test_all_workers_are_free_at_the_same_moments(monkeypatch: pytest.MonkeyPatch):
    breaks = Breaks(100.0)
    seen = []
    for second in range(1000, 1100):
        monkeypatch.setattr("batchkit.tracking.duty.time.time", lambda second=second: float(second))
        seen.append(breaks.are_now)
    assert [True] * 20 + [False] * 80 == seen
    assert breaks.has_begun_since(999.0)
    assert not breaks.has_begun_since(1001.0)


def test_without_an_end_to_protection_there_are_none():
    breaks = Breaks(None)
    assert (False, 0.0, False) == (breaks.are_now, breaks.seconds_left, breaks.has_begun_since(0.0))
