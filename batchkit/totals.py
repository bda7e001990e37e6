"""What all runs of a job add up to, as far as the store still has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchkit.states import RunState


@dataclass(frozen=True, slots=True)
class JobTotals:
    """
    The sums over the runs of one job. All but the last two only rise, as long as no run is removed.

    Dry runs count as runs, and for nothing else: what they have done was rolled back.
    """

    job: str
    #: how many runs there are in each state; states without one are there with 0
    runs: Mapping[RunState, int]
    #: how often a run was interrupted
    interruptions: int
    checkpoints: int
    done: int
    failed: int
    in_doubt: int
    #: of the runs that have not ended: the items that are done, and all that they have; None where one does not know
    unfinished_done: int
    unfinished_items: int | None
