"""
What tests of jobs need: runs that are worked and interrupted here, and a test that kills them at each commit.

Nothing else in batchkit imports it.
"""

from __future__ import annotations

from batchkit.queues.inline import InlineQueue
from batchkit.testing.crashing import CrashTest, crash_test
from batchkit.testing.errors import CrashTestFailed, InvalidCrashTest
from batchkit.testing.inline import go_on, interrupt_after, restart_after_every_chunk, run_inline
from batchkit.testing.restarting import CursorForgotten, restart_after_every_yield

__all__ = [
    "CrashTest",
    "CrashTestFailed",
    "CursorForgotten",
    "InlineQueue",
    "InvalidCrashTest",
    "crash_test",
    "go_on",
    "interrupt_after",
    "restart_after_every_chunk",
    "restart_after_every_yield",
    "run_inline",
]
