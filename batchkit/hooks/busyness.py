"""Hooks that tell a platform whether this worker is busy, and whether it may be stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from batchkit.busy import Busy


@dataclass(frozen=True, slots=True)
class WorkerState:
    """How one worker stands: what a platform signals as one, with all its children."""

    #: its main process, as instance and process id, and the dyno, pod, task or machine that it is part of
    worker: str
    instance: str
    #: slices that cannot stop within the grace, or of which it is not known; kept at 1 for a moment after the last
    protected: int
    #: slices that reach their next checkpoint within the grace; kept at 1 for a moment after the last
    interruptible: int
    #: estimated seconds until the slowest of them is at its checkpoint; None where it is not known, or there is none
    remaining: float | None
    #: whether it takes nothing more: it is stopping, or its instance is being drained, which may be called off
    is_draining: bool
    #: rises with each state of this worker: what comes late can be told by it
    sequence: int
    #: whether it was asked to stop, by a signal, and ends once its slices are at their checkpoints
    is_stopping: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether any slice is worked."""
        return self.protected + self.interruptible > 0

    @property
    def is_protected(self) -> bool:
        """Whether it must not be stopped now."""
        return self.protected > 0


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook may want to know of the worker that it is called in: what does not change."""

    #: its main process, as instance and process id, and the dyno, pod, task or machine that it is part of
    worker: str
    instance: str
    #: celery, rq or local; supervisor, where a `FleetHook` is called in `batchkit supervise`
    kind: str
    #: reads the whole fleet from the store; it may raise, and take as long as the database does
    busy: Callable[[], Busy]
    #: for how many seconds a protection lasts at the most, and how often `repeated` is called
    max_protect: float | None
    repeat_seconds: float


@runtime_checkable
class BusyHook(Protocol):
    """
    Tells somebody outside whether this worker is busy: derive from it, and write the methods that you want.

    All of them are called in the main process of a worker (that of Celery, of `batchkit work`, of
    `batchkit.queues.rq.Worker`), in a thread of the hook's own, one after the other. What a hook raises is logged and
    changes nothing; one that fails or hangs is left alone for a while, and told of the newest state after that.
    """

    def begin(self, context: HookContext) -> None:  # noqa: ARG002  for those who write it
        """Be told that the worker has begun, before anything else."""
        return

    def protect(self, state: WorkerState) -> bool | None:  # noqa: ARG002  for those who write it
        """
        See to it that the worker is not stopped, before it claims what must not be: a worker waits for the answer.

        True: the platform has granted it. False: it has refused, so the work is left to other workers. None: it does
        not grant such things, or nobody knows; the work is claimed all the same.
        """
        return None

    def changed(self, state: WorkerState) -> None:  # noqa: ARG002  for those who write it
        """Be told that it became busy, protected or drained at once, and that it is so no longer after a moment."""
        return

    def repeated(self, state: WorkerState) -> None:
        """Be told the state again every few seconds, since something may have got lost; what `changed` does."""
        self.changed(state)

    def checkpointed(self, state: WorkerState) -> None:  # noqa: ARG002  for those who write it
        """Be told, about once a second at the most, that a chunk was committed: it makes progress."""
        return

    def end(self) -> None:
        """Be told that the worker ends."""
        return


class FleetHook(BusyHook):
    """
    A busy hook that tells of the whole fleet, by what `context.busy()` reads, and not of one worker alone.

    So `batchkit supervise` calls it as well, as a worker of the kind `supervisor` that works nothing: the main process
    of a stock `rq worker` runs no code of ours, and nobody else can tell of it.
    """
