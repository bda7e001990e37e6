"""Facts for programs as JSON, and for people as tables."""

from __future__ import annotations

import base64
import enum
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchkit.errors import BatchkitError
from batchkit.model import Partition, Progress, RunError, Transition
from batchkit.run import Run
from batchkit.states import PartitionState

Facts: TypeAlias = dict[str, object]

_UNLIMITED_WIDTH = 1000
_MINUTE = 60
#: Of more partitions only those are shown that somebody works or has begun.
_MOST_PARTITIONS = 12
_DAY = 24 * 3600


def _moment(value: datetime) -> str:
    # One without a time zone means what the user means by it.
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(timezone.utc).isoformat(timespec="milliseconds")


#: In this order: an Enum may be a str, a bool is an int, a datetime is a date.
_WRITERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (
    (enum.Enum, lambda value: value.name),
    ((bool, int, str), lambda value: value),
    (float, lambda value: value if math.isfinite(value) else str(value)),
    (datetime, _moment),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, lambda value: value.total_seconds()),
    (bytes, lambda value: base64.b64encode(value).decode()),
)


def run_facts(run: Run) -> Facts:
    """Give a run in the shape that `--json` prints; programs depend on it."""
    return {
        "id": run.id,
        "job": run.job,
        "state": run.state.value,
        "requested": None if run.requested is None else run.requested.value,
        "params": _readable(lambda: run.params),
        "queue": run.queue,
        "delivery": run.delivery,
        "progress": _progress_facts(run.progress),
        "result": _readable(lambda: run.result),
        "error": None if run.error is None else _error_facts(run.error),
        "waiting_reason": run.waiting_reason,
        "retries": run.retries,
        "retry_reason": run.retry_reason,
        "rerun_of": run.rerun_of,
        "failures_of": run.failures_of,
        "limit": run.limit,
        "max_workers": run.max_workers,
        "after": _readable(lambda: run.after),
        "is_dry_run": run.is_dry_run,
        "created_at": plain(run.created_at),
        "started_at": plain(run.started_at),
        "finished_at": plain(run.finished_at),
    }


def full_facts(run: Run, partitions: Iterable[Partition], history: Iterable[Transition]) -> Facts:
    """Give a run with its partitions and its changes of state."""
    return {
        **run_facts(run),
        "partitions": [
            {
                "number": each.number,
                "kind": each.kind.value,
                "state": each.state.value,
                "cursor": plain(each.cursor),
                "done": each.done,
                "failed": each.failed,
                "in_doubt": each.in_doubt,
                "fence": each.fence,
                "worker": each.worker,
                "lease_expires_at": plain(each.lease_expires_at),
                "is_held": each.is_held,
                "until": plain(each.until),
            }
            for each in partitions
        ],
        "history": [
            {
                "at": plain(each.at),
                "before": None if each.before is None else each.before.value,
                "after": each.after.value,
                "reason": each.reason,
                "worker": each.worker,
            }
            for each in history
        ],
    }


def plain(value: object) -> object:
    """Put a value in the form that JSON has for it; what it lacks is the text that `key=value` takes."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    return value if value is None else str(value)


def clock(seconds: float) -> str:
    """Show a length of time as hours, minutes and seconds."""
    days, rest = divmod(round(seconds), _DAY)
    shown = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {shown}" if days else shown


def took(seconds: float) -> str:
    """Show how long something took: to a tenth of a second where that matters."""
    return f"{seconds:.1f} s" if seconds < _MINUTE else clock(seconds)


def speed(rate: float) -> str:
    """Show items per second."""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"  # noqa: PLR2004  below ten the first decimal matters


def count(progress: Progress) -> str:
    """Show how many items are done, and of how many."""
    total = "" if progress.total is None else f"/{'~' if progress.total_is_estimate else ''}{progress.total:,}"
    return f"{progress.done:,}{total}"


def params_text(run: Run) -> str:
    """Show the params as they were written on the command line."""
    params = _readable(lambda: run.params)
    return " ".join(f"{name}={value}" for name, value in params.items()) if isinstance(params, dict) else str(params)


def show_runs(runs: Sequence[Run]) -> None:
    """Print runs, one a line."""
    rows = [
        [
            run.id,
            run.job,
            state_text(run),
            count(run.progress),
            "" if run.progress.percent is None else f"{run.progress.percent:.1f} %",
            local(run.created_at),
            took(run.progress.elapsed.total_seconds()),
            params_text(run),
        ]
        for run in runs
    ]
    show_table(["id", "job", "state", "done", "", "started", "took", "params"], rows)


def show_run(run: Run, partitions: Sequence[Partition], history: Sequence[Transition]) -> None:
    """Print all about one run."""
    progress = run.progress
    facts = {
        "run": run.id,
        "job": run.job,
        "params": params_text(run),
        "state": state_text(run),
        "waits because": run.waiting_reason,
        "done": count(progress) + ("" if progress.percent is None else f" ({progress.percent:.1f} %)"),
        "failed items": (progress.failed and f"{progress.failed:,} (batchkit failures {run.id})") or None,
        "in doubt": (progress.in_doubt and f"{progress.in_doubt:,} (batchkit failures {run.id})") or None,
        "tried again": (run.retries and f"{run.retries} times, last {run.retry_reason}") or None,
        "failures of": run.failures_of,
        "limit": run.limit and f"{run.limit:,} items",
        "most workers": run.max_workers,
        "partitions": summed_up(partitions) if len(partitions) > _MOST_PARTITIONS else None,
        "after": run_facts(run)["after"],
        "dry run": "yes: every chunk is rolled back" if run.is_dry_run else None,
        "rate": progress.rate and speed(progress.rate),
        "ETA": None if progress.eta is None or run.has_ended else clock(progress.eta.total_seconds()),
        "took": took(progress.elapsed.total_seconds()),
        "workers": progress.workers,
        "interruptions": progress.interruptions,
        "delivery": run.delivery,
        "queue": run.queue,
        "created": local(run.created_at),
        "started": run.started_at and local(run.started_at),
        "finished": run.finished_at and local(run.finished_at),
        "result": run_facts(run)["result"],
        "error": run.error,
        "at the item": None if run.error is None else run.error.item,
    }
    show_table([], [[name, str(value)] for name, value in facts.items() if value is not None])
    show_table(
        ["partition", "state", "done", "cursor", "worker", "lease ends"],
        [
            [
                f"{each.number} ({each.kind})",
                each.state.value,
                f"{each.done:,}",
                "" if each.cursor is None else str(plain(each.cursor)),
                each.worker or "" if each.is_held else "",
                local(each.lease_expires_at) if each.is_held and each.lease_expires_at else "",
            ]
            for each in shown_partitions(partitions)
        ],
    )
    show_table(
        ["when", "from", "to", "why", "worker"],
        [[local(each.at), str(each.before or ""), str(each.after), each.reason, each.worker or ""] for each in history],
    )
    if run.error is not None:
        print(run.error.traceback.rstrip())  # noqa: T201  it talks to a person


def shown_partitions(partitions: Sequence[Partition]) -> Sequence[Partition]:
    """Choose those that tell how a run stands: all of a few, else those that are worked, or were begun and wait."""
    if len(partitions) <= _MOST_PARTITIONS:
        return partitions
    unfinished = [each for each in partitions if each.state is not PartitionState.FINAL]
    begun = [each for each in unfinished if each.is_held or each.done or each.failed or each.in_doubt]
    # Workers first.
    return sorted(begun, key=lambda each: not each.is_held)[:_MOST_PARTITIONS]


def summed_up(partitions: Sequence[Partition]) -> str:
    """Say how many of many partitions are done, are worked, and wait."""
    final = sum(each.state is PartitionState.FINAL for each in partitions)
    held = sum(each.is_held for each in partitions)
    return f"{len(partitions):,}: {final:,} done, {held:,} worked, {len(partitions) - final - held:,} waiting"


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as it is where it goes into a file or a pipe, else within the terminal."""
    table = Table(*header, box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0))
    if not header:
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
    for column in table.columns[:1]:
        column.no_wrap = True
    for row in rows:
        # Text, since brackets in a user's words are no markup.
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))  # noqa: T201  it talks to a person


def state_text(run: Run) -> str:
    """Show the state, and what was asked of the run that its workers have not seen yet."""
    return f"{run.state} ({run.requested} requested)" if run.requested else run.state.value


def local(moment: datetime) -> str:
    """Show a moment in the time zone of this machine."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _readable(read: Callable[[], object]) -> object:
    try:
        return plain(read())
    except BatchkitError as error:
        # An Enum of the user's, in a process that did not import it: no reason to show nothing of the run.
        return {"unreadable": str(error)}


def _progress_facts(progress: Progress) -> Facts:
    return {
        "done": progress.done,
        "failed": progress.failed,
        "in_doubt": progress.in_doubt,
        "total": progress.total,
        "total_is_estimate": progress.total_is_estimate,
        "percent": _rounded(progress.percent),
        "rate": _rounded(progress.rate),
        "eta_seconds": None if progress.eta is None else _rounded(progress.eta.total_seconds()),
        "elapsed_seconds": _rounded(progress.elapsed.total_seconds()),
        "workers": progress.workers,
        "interruptions": progress.interruptions,
        "chunk_size": progress.chunk_size,
    }


def _error_facts(error: RunError) -> Facts:
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "partition": error.partition,
        "cursor": error.cursor,
        "item": error.item,
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
