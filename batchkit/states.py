"""The states of a run, the changes between them, and the rule that settles a run nobody works."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from batchkit.errors import IllegalTransition


class RunState(str, enum.Enum):
    """Where a run stands."""

    #: waits for a worker
    QUEUED = "queued"
    #: a worker holds one of its partitions, or did until a moment ago
    RUNNING = "running"
    #: a person stopped it; it waits for `resume()`
    PAUSED = "paused"
    #: every item was done and `finish` returned
    SUCCEEDED = "succeeded"
    #: an error stopped it; its cursor is kept, and `resume()` goes on there
    FAILED = "failed"
    #: a person ended it for good
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


class Request(str, enum.Enum):
    """What a person asked of a run while workers hold it; they see it at the next chunk boundary."""

    PAUSE = "pause"
    CANCEL = "cancel"

    def __str__(self) -> str:
        return self.value


class PartitionState(str, enum.Enum):
    """Where a partition stands."""

    #: its work waits for others: `finish`, until every item is done
    WAITING = "waiting"
    #: there is work left in it
    OPEN = "open"
    #: nothing is left to do in it
    FINAL = "final"

    def __str__(self) -> str:
        return self.value


class PartitionKind(str, enum.Enum):
    """What the work of a partition is."""

    #: a range of the source's items
    ITEMS = "items"
    #: the job's `finish` function
    FINISH = "finish"

    def __str__(self) -> str:
        return self.value


#: Each allowed change of state with the event that makes it; docs/state-machine.md is generated from this table.
TRANSITIONS: Mapping[tuple[RunState, RunState], str] = {
    (RunState.QUEUED, RunState.RUNNING): "a worker claims it",
    (RunState.QUEUED, RunState.PAUSED): "paused by a person before a worker claimed it",
    (RunState.QUEUED, RunState.CANCELLED): "cancelled by a person before a worker claimed it",
    (RunState.RUNNING, RunState.QUEUED): "interrupted: its workers stopped or died, and it goes on by itself",
    (RunState.RUNNING, RunState.PAUSED): "its last worker reached a chunk boundary with a pause requested",
    (RunState.RUNNING, RunState.SUCCEEDED): "every item was done and finish returned",
    (RunState.RUNNING, RunState.FAILED): "an error stopped it",
    (RunState.RUNNING, RunState.CANCELLED): "its last worker reached a chunk boundary with a cancel requested",
    (RunState.PAUSED, RunState.QUEUED): "resumed by a person",
    (RunState.PAUSED, RunState.CANCELLED): "cancelled by a person",
    (RunState.FAILED, RunState.QUEUED): "resumed by a person; it goes on behind the last committed item",
}

#: States in which a run has ended. A failed run can still be resumed by a person.
FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

#: States in which a worker may claim a partition of the run.
WORKABLE = frozenset({RunState.QUEUED, RunState.RUNNING})


def successors(state: RunState) -> tuple[RunState, ...]:
    """Give the states that a run can take from *state*."""
    return tuple(after for before, after in TRANSITIONS if before is state)


def check_transition(run_id: str, current: RunState, wanted: RunState) -> None:
    """
    Refuse a change of state that is not in the table.

    Raises:
        IllegalTransition: it names the changes that are possible.
    """
    if (current, wanted) not in TRANSITIONS:
        raise illegal_transition(run_id, current, wanted)


def illegal_transition(run_id: str, current: RunState, wanted: RunState) -> IllegalTransition:
    """Make the error that names the states which are possible instead."""
    possible = [state.value for state in successors(current) if state is not wanted]
    return IllegalTransition(run_id, current=current.value, wanted=wanted.value, possible=possible)


def settled(state: RunState, requested: Request | None, *, unfinished: int, held: int) -> RunState:
    """
    Say what state a run takes once its partitions look like this.

    *unfinished* counts its partitions that are not final, *held* those with a live lease. A run that somebody still
    works, or that is not being worked at all, stays as it is. Cancel beats the end of the work, which beats pause.
    """
    if held or state is not RunState.RUNNING:
        return state
    if requested is Request.CANCEL:
        return RunState.CANCELLED
    if not unfinished:
        return RunState.SUCCEEDED
    if requested is Request.PAUSE:
        return RunState.PAUSED
    return RunState.QUEUED
