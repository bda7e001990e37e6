"""When a lease is renewed beside the work: told by a clock that is moved by the waits themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from batchkit import lease_timer
from batchkit.lease_timer import LeaseTimer

_LEASE_SECONDS = 60.0
_A_THIRD = _LEASE_SECONDS / 3
_UNTIL = 600.0


class _Time:
    """A clock, and the event that the timer waits for; while it waits, checkpoints come at their moments."""

    def __init__(self, checkpoints: list[float]) -> None:
        self.now = 0.0
        self.renewed = [0.0]
        self.timer: Any = None
        self._checkpoints = sorted(checkpoints)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        until = self.now + seconds
        while self._checkpoints and self._checkpoints[0] <= until:
            self.now = self._checkpoints.pop(0)
            self.timer.checkpointed()
            self.renewed.append(self.now)
        self.now = until
        return until > _UNTIL

    def renew(self, _: object) -> bool:
        self.renewed.append(self.now)
        return True


@given(st.lists(st.floats(min_value=0.0, max_value=_UNTIL)))
def test_a_lease_is_renewed_a_third_of_it_after_the_last_time_whenever_checkpoints_come(checkpoints: list[float]):
    time = _Time(checkpoints)
    with mock.patch.object(lease_timer, "time", time):
        lease: Any = SimpleNamespace(seconds=_LEASE_SECONDS, run_id="run", number=0)
        leases: Any = time
        time.timer = timer = LeaseTimer(leases, lease, chunk_timeout=_UNTIL * 2)
        timer._ended = time  # type: ignore[assignment]  # noqa: SLF001
        timer._run()  # noqa: SLF001  in this thread
    gaps = [after - before for before, after in zip(time.renewed, time.renewed[1:], strict=False)]
    assert max(gaps) <= _A_THIRD + 0.001
    assert _UNTIL - time.renewed[-1] <= _A_THIRD + 0.001
    # Nor more often than that.
    assert len(time.renewed) - 1 - len(checkpoints) <= _UNTIL / _A_THIRD
