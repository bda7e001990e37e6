"""The seam to whatever wakes workers up."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from batchkit.model import WakeUp


class Queue(Protocol):
    """Wakes workers up. A wake-up carries an id and a number only: losing or doubling it costs time, never data."""

    #: whether workers are other processes, so that a job must be importable there
    crosses_processes: bool
    #: whether a wake-up that was sent waits until a worker takes it, so that it is sent again only when overdue
    keeps_messages: bool

    def wake(self, wake_up: WakeUp) -> None:
        """
        Have a worker look at the run soon.

        It is called after the commit that made the run workable; an exception is logged, since sweeps wake it again.
        """
        ...


@runtime_checkable
class ByPath(Protocol):
    """A queue whose workers find a job by the path of its function."""

    #: whether it is one
    imports_by_path: bool
