"""
Hooks: what is told of runs, and of workers.

A `RunHook` is called when a run starts, is interrupted, paused, resumed, or ends. A `BusyHook` tells a platform that
this worker is busy, and whether it may be stopped.
"""

from __future__ import annotations

from batchkit.hooks.busyness import BusyHook, FleetHook, HookContext, WorkerState
from batchkit.hooks.checking import Hooks, checked_hooks
from batchkit.hooks.runs import Happening, RunEvent, RunHook, happened

__all__ = [
    "BusyHook",
    "FleetHook",
    "Happening",
    "HookContext",
    "Hooks",
    "RunEvent",
    "RunHook",
    "WorkerState",
    "checked_hooks",
    "happened",
]
