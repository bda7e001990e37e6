"""Whether a chunk of a large run costs more than one of a small run: time per chunk, and memory."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine

from batchkit import BatchKit
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.stopping import Stop
from benchmarks.safety import fill, job_of

_CHUNK_SIZE = 500
_MEASURED = 40


@dataclass(frozen=True)
class Grown:
    """One run: the median of its last chunks in milliseconds, and the most memory that its process ever used."""

    items: int
    milliseconds: float
    megabytes: float


def measure(url: str, *, items: int) -> Grown:
    """Work a whole run in a process of its own."""
    program = f"from benchmarks.growth import work; work({url!r}, {items})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    milliseconds, megabytes = map(float, done.stdout.split())
    return Grown(items, milliseconds, megabytes)


def prepare(url: str, *, items: int) -> None:
    """Make the table."""
    engine = create_engine(url)
    fill(engine, items=items)
    engine.dispose()


def work(url: str, items: int) -> None:
    """Work a run over all items, and print what it took."""
    kit = BatchKit(url)
    kit.migrate()
    run = kit.start_run_here(JOBS[job_of(_CHUNK_SIZE).name], "{}")
    commits: list[float] = []

    def watch(_: Lease) -> None:
        commits.append(time.perf_counter())
        del commits[: -_MEASURED - 1]

    with Stop() as stop:
        kit.work_run(run.id, stop=stop, watch=watch)
    if items != run.refresh().progress.done:
        message = f"{run} did not do {items} items"
        raise RuntimeError(message)
    times = [after - before for before, after in itertools.pairwise(commits)]
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    print(statistics.median(times) * 1000, peak / 1024)
