"""
Busy tracking inside a worker: what its slices tell its main process, and what that tells hooks.

A slice is worked in a child, hooks are called in the main process: between them is a socket. The store stays the truth;
what goes through here is only quicker.
"""

from __future__ import annotations

from batchkit.tracking.attendance import SUPERVISOR, WorkerKind
from batchkit.tracking.duty import Breaks, Duty
from batchkit.tracking.tie import FREE, Tie, tied_to_main
from batchkit.tracking.tracker import Tracker

__all__ = ["FREE", "SUPERVISOR", "Breaks", "Duty", "Tie", "Tracker", "WorkerKind", "tied_to_main"]
