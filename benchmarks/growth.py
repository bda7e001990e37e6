"""Whether a chunk of a large run costs more than one of a small run: time per chunk, and memory."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, insert, literal, select

from batchkit import BatchKit
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.stopping import Stop
from benchmarks.safety import fill, item, job_of

#: How many rows, and how many to a chunk.
RUNS = ((20_000, 500), (200_000, 500), (2_000_000, 500), (100_000, 5_000), (1_000_000, 5_000), (10_000_000, 5_000))
_MEASURED = 40


@dataclass(frozen=True)
class Grown:
    """One run: the median of its last chunks, how long it took, and the most memory that its process ever used."""

    items: int
    milliseconds: float
    seconds: float
    megabytes: float


def measure(url: str, *, items: int, chunk_size: int) -> Grown:
    """Work a whole run in a process of its own."""
    program = f"from benchmarks.growth import work; work({url!r}, {items}, {chunk_size})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    milliseconds, seconds, megabytes = map(float, done.stdout.split())
    return Grown(items, milliseconds, seconds, megabytes)


def prepare(url: str, *, items: int) -> None:
    """Make the table, by the database itself: to send ten million rows takes longer than to work them."""
    engine = create_engine(url)
    fill(engine, items=0)
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < items))
    with engine.begin() as tx:
        tx.execute(insert(item).from_select(list(item.c), select(numbers.c.n, literal(0), literal("x" * 50))))
    engine.dispose()


def work(url: str, items: int, chunk_size: int) -> None:
    """Work a run over all items, and print what it took."""
    kit = BatchKit(url)
    kit.migrate()
    run = kit.start_run_here(JOBS[job_of(chunk_size).name], "{}")
    commits: list[float] = []

    def watch(_: Lease) -> None:
        commits.append(time.perf_counter())
        del commits[: -_MEASURED - 1]

    began = time.perf_counter()
    with Stop() as stop:
        kit.work_run(run.id, stop=stop, watch=watch)
    seconds = time.perf_counter() - began
    if items != run.refresh().progress.done:
        message = f"{run} did not do {items} items"
        raise RuntimeError(message)
    times = [after - before for before, after in itertools.pairwise(commits)]
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    print(statistics.median(times) * 1000, seconds, peak / 1024)
