"""How a worker stands, and for how long it may refuse to be stopped, with the clock in hand."""

from __future__ import annotations

from batchkit.tracking import Breaks
from batchkit.tracking.overtime import Overtime
from batchkit.tracking.standing import SliceSeen, Standing


def _standing() -> tuple[Standing, SliceSeen]:
    standing, slice_ = Standing("pod-1:7", "pod-1", linger=5.0), SliceSeen()
    standing.slices[1] = slice_
    return standing, slice_


def _protected(standing: Standing, now: float) -> int:
    return standing.state(now, is_draining=False).protected


def test_what_was_asked_for_and_refused_is_protected_no_longer():
    standing, slice_ = _standing()
    standing.hear(slice_, {"asks": True}, 0.0)
    assert 1 == _protected(standing, 0.0)
    slice_.is_asking = False
    assert 0 == _protected(standing, 0.1)


def test_what_was_granted_and_not_got_lingers():
    standing, slice_ = _standing()
    standing.hear(slice_, {"asks": True}, 0.0)
    slice_.is_granted = True
    assert 1 == _protected(standing, 0.0)
    del standing.slices[1]
    assert (1, 0) == (_protected(standing, 4.9), _protected(standing, 5.0))


def test_a_worker_that_stops_takes_nothing_and_lingers_not():
    standing, slice_ = _standing()
    standing.hear(slice_, {"begins": True, "is_protected": True, "expected": 1.0, "working": 24.0}, 0.0)
    assert 1 == _protected(standing, 0.0)
    del standing.slices[1]
    state = standing.state(0.1, is_draining=False, is_stopping=True)
    assert (True, True, 0) == (state.is_draining, state.is_stopping, state.protected)


def test_who_was_protected_for_too_long_begins_nothing_protected_until_it_was_free_for_a_while():
    overtime = Overtime(Breaks(40.0))
    for now in range(40):
        overtime.note(float(now), is_protected=True)
        assert not overtime.is_over(float(now))
    overtime.note(40.0, is_protected=True)
    assert overtime.is_over(40.0)
    overtime.note(55.0, is_protected=False)
    assert overtime.is_over(64.9)
    assert not overtime.is_over(65.0)
    overtime.note(66.0, is_protected=True)
    assert not overtime.is_over(66.0)


def test_who_was_free_now_and_then_is_asked_for_nothing():
    overtime = Overtime(Breaks(40.0))
    for now in range(0, 400, 10):
        overtime.note(float(now), is_protected=now % 30 != 0)
        assert not overtime.is_over(float(now))


def test_without_an_end_a_worker_may_be_protected_for_ever():
    overtime = Overtime(Breaks(None))
    overtime.note(0.0, is_protected=True)
    assert not overtime.is_over(1e9)
