"""The seam to whatever wakes workers up."""

from __future__ import annotations

from typing import Protocol

from batchkit.model import RunId


class Queue(Protocol):
    """Wakes workers up. A wake-up carries a run's id and no more, so losing or doubling it costs time, never data."""

    #: whether workers are other processes, so that a job must be importable there
    crosses_processes: bool

    def wake(self, run_id: RunId, *, queue: str) -> None:
        """
        Have a worker of *queue* look at the run soon.

        It is called after the commit that made the run workable; an exception is logged, since sweeps wake it again.
        """
        ...
