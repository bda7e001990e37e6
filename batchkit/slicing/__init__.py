"""One slice of a run: what a wake-up does with the partition that it claims."""

from __future__ import annotations

from batchkit.slicing.outcome import Ending, Outcome, Surroundings
from batchkit.slicing.slice import work_slice

__all__ = ["Ending", "Outcome", "Surroundings", "work_slice"]
