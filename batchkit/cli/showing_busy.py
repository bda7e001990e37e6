"""Who is busy, as tables for people."""

from __future__ import annotations

import sys
from datetime import datetime

from batchkit.busy import Busy, BusySlice
from batchkit.cli.showing import clock, show_table


def show_busy(busy: Busy) -> None:
    """Show queues, what is worked, and the workers that are there."""
    show_table(
        ["queue", "workers", "busy", "interruptible", "protected", "ready", "wanted", "oldest waiting"],
        [
            [
                each.queue,
                str(each.workers),
                str(each.busy),
                str(each.interruptible),
                str(each.protected),
                str(each.ready),
                str(each.wanted),
                "" if each.oldest_waiting is None else clock(each.oldest_waiting.total_seconds()),
            ]
            for each in busy.queues
        ],
    )
    if busy.slices:
        print()  # noqa: T201  it talks to a person
        show_table(
            ["worker", "run", "job", "partition", "since", "next checkpoint", "may be stopped"],
            [_slice_row(each, busy.read_at) for each in busy.slices],
        )
    draining = sorted({each.instance for each in busy.workers if each.is_draining})
    if draining:
        print(f"draining: {', '.join(draining)}", file=sys.stderr)  # noqa: T201  the same


def _slice_row(each: BusySlice, now: datetime) -> list[str]:
    return [
        each.worker,
        each.run_id,
        each.job,
        str(each.partition),
        clock((now - each.since).total_seconds()),
        "unknown" if each.remaining is None else f"in {each.remaining:.1f} s",
        "yes" if each.is_interruptible else "no",
    ]
