"""Hooks that are called when a run starts, is interrupted, paused, resumed, or ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from batchkit.model import Progress, RunError, RunId
from batchkit.states import RunState
from batchkit.values import loads


class Happening(str, enum.Enum):
    """What hooks are told of; each is the name of the method that is called."""

    #: a worker has claimed the run for the first time
    STARTED = "started"
    #: infrastructure has stopped its last worker; it goes on by itself
    INTERRUPTED = "interrupted"
    #: a person has stopped it
    PAUSED = "paused"
    #: a person lets it go on, after a pause or a failure
    RESUMED = "resumed"
    #: every item was done
    SUCCEEDED = "succeeded"
    #: an error has stopped it
    FAILED = "failed"
    #: a person has ended it
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A change of a run's state that was committed, and how the run stood when it was read after that."""

    happening: Happening
    run_id: RunId
    #: the name of the job
    job: str
    #: the params as JSON text
    stored_params: str
    before: RunState
    after: RunState
    #: why, as the run's history says it
    reason: str
    #: the worker that made the change; None for a person, a sweep, or where it is not known
    worker: str | None
    #: when, by the database's clock
    at: datetime
    #: what made the run fail
    error: RunError | None
    progress: Progress

    @property
    def params(self) -> dict[str, object]:
        """The params that the run was started with, defaults included."""
        return cast("dict[str, object]", loads(self.stored_params))


class RunHook:
    """
    Does something when a run changes its state: derive from it, and write the methods that you want.

    Each is called after the change was committed, in the process that made it: the worker, the web process of a
    `cancel()`, the sweep that found a run whose worker had died. It is called at most once; not at all where that
    process dies in between. What it raises is logged and changes nothing.

    A worker calls it with its lease given back, and has no time for other runs meanwhile. Only `started` is called with
    a lease, which is renewed until `chunk_timeout`. `event.after` is the state that was committed; the run may have
    gone on since.
    """

    def started(self, event: RunEvent) -> None:
        """Be told that a worker has claimed the run for the first time."""

    def interrupted(self, event: RunEvent) -> None:
        """Be told that a shutdown, a full slice or a death has stopped the run's work, and it goes on by itself."""

    def paused(self, event: RunEvent) -> None:
        """Be told that the run has stopped for a person."""

    def resumed(self, event: RunEvent) -> None:
        """Be told that a person lets the run go on, after a pause or a failure."""

    def succeeded(self, event: RunEvent) -> None:
        """Be told that every item was done and `finish` has returned."""

    def failed(self, event: RunEvent) -> None:
        """Be told that an error has stopped the run."""

    def cancelled(self, event: RunEvent) -> None:
        """Be told that a person has ended the run."""


def happened(before: RunState, after: RunState, *, is_interruption: bool, is_first: bool) -> Happening | None:
    """Say what hooks are told of a change of state; None where a run merely waits, or goes on by itself."""
    if after is RunState.RUNNING and before is RunState.QUEUED:
        return Happening.STARTED if is_first else None
    if before is RunState.RUNNING and after in {RunState.QUEUED, RunState.RUNNING}:
        return Happening.INTERRUPTED if is_interruption else None
    if after is RunState.QUEUED:
        return Happening.RESUMED
    return Happening(after.value)
