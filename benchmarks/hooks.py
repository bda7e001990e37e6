"""What busy hooks cost: the chunks of a worker whose hook hangs, fails or is slow, beside those of one without any."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import select

from batchkit import BatchKit, Chunk, batched, rows
from batchkit.hooks import BusyHook, WorkerState
from batchkit.stopping import Stop
from batchkit.tracking import WorkerKind
from benchmarks.safety import fill, item

WAYS = ("no hook", "quick", "fails", "slow", "hangs")
_CHUNK = 50
_SLICE_SECONDS = 2.0


class Quick(BusyHook):
    """Does nothing at once."""

    def protect(self, state: WorkerState) -> bool | None:
        """Grant it."""
        return True


class Fails(BusyHook):
    """Raises at each call."""

    def protect(self, state: WorkerState) -> bool | None:
        """Raise."""
        raise OSError

    def changed(self, state: WorkerState) -> None:
        """Raise."""
        raise OSError


class Slow(BusyHook):
    """Takes a second each time."""

    def protect(self, state: WorkerState) -> bool | None:
        """Take it."""
        time.sleep(1)
        return True

    def changed(self, state: WorkerState) -> None:
        """Take it."""
        time.sleep(1)


class Hangs(BusyHook):
    """Never returns."""

    def changed(self, state: WorkerState) -> None:
        """Hang."""
        time.sleep(3600)


#: when each chunk of this process began
_began: list[float] = []


@batched(rows(select(item), key=item.c.id), chunk_size=_CHUNK, slice_time=_SLICE_SECONDS, name="bench.hooks")
def work(chunk: Chunk[object]) -> None:  # noqa: ARG001  what a function gets
    """Do nothing but commit."""
    _began.append(time.perf_counter())


@dataclass(frozen=True)
class Taken:
    """Milliseconds per chunk."""

    #: the median from one to the next
    clock: float
    #: of all threads of the process, the hook's too
    cpu: float


def measure(url: str, *, chunks: int, rounds: int) -> dict[str, Taken]:
    """Give what a chunk takes, by the way of the hook: the medians of alternating processes."""
    with closing(BatchKit(url)) as kit:
        kit.migrate()
        fill(kit._store.database.engine, items=chunks * _CHUNK)  # noqa: SLF001  the items are in the same database
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.hooks", url, way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            took[way].append(json.loads(done.stdout))
    return {
        way: Taken(*(statistics.median(part) * 1000 for part in zip(*times, strict=True)))
        for way, times in took.items()
    }


def main(url: str, way: str) -> None:
    """Work one run in slices with one hook, as a worker does, and print the seconds per chunk, by clock and by CPU."""
    made: dict[str, BusyHook] = {"quick": Quick(), "fails": Fails(), "slow": Slow(), "hangs": Hangs()}
    hooks = [made[way]] if way in made else []
    with closing(BatchKit(url, hooks=hooks, grace=30, max_protect=10**9)) as kit, Stop() as stop:
        tracker = kit.tracker()
        tracker.start(WorkerKind("local", None, 1), is_stopping=lambda: stop.requested)
        run = work.start()
        used = time.process_time()
        while not run.refresh().has_ended:
            kit._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  a worker's loop without its pauses
        used = time.process_time() - used
        tracker.stop()
    clock = statistics.median(after - before for before, after in itertools.pairwise(_began))
    print(json.dumps([clock, used / len(_began)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
