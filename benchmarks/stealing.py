"""How soon four workers end where one of four partitions has nine tenths of the work: `measure(url)`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchkit import BatchKit, Chunk, Source, batched, span
from batchkit.queues import LocalQueue
from batchkit.states import PartitionKind

_ROOT = Path(__file__).resolve().parent.parent
_WORKERS = 4
_ITEMS = 2000
_SHARE_OF_FIRST = 0.9
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    """How long the run took, and how long it takes at best: all workers end at the same moment."""

    database: str
    ideal: float
    took: float
    partitions: int

    @property
    def ratio(self) -> float:
        """What was lost: 1.0 is nothing. Without stealing it is the first partition's share, times the workers."""
        return self.took / self.ideal


def _items(seconds: float) -> Source[int]:  # noqa: ARG001  a source is made of the params
    return span(_ITEMS)


@batched(_items, name="bench-stealing", partitions=_WORKERS)
def wait(chunk: Chunk[int], seconds: float) -> None:
    """Take *seconds* for all items together, most of it for those of the first partition."""
    first = _ITEMS // _WORKERS
    each = {True: seconds * _SHARE_OF_FIRST / first, False: seconds * (1 - _SHARE_OF_FIRST) / (_ITEMS - first)}
    time.sleep(sum(each[item < first] for item in chunk))


def measure(url: str, *, seconds: float) -> Measured:
    """Work *seconds* of work by four processes of the built-in queue."""
    with closing(BatchKit(url, queue=LocalQueue())) as kit:
        kit.migrate()
        with ExitStack() as stack:
            for _ in range(_WORKERS):
                stack.enter_context(_worker(url))
            # All of them are there before there is anything to do.
            while len(kit.busy().workers) < _WORKERS:
                time.sleep(_POLL_SECONDS)
            run = wait.start(seconds=seconds)
            while not run.refresh().has_ended:
                time.sleep(_POLL_SECONDS)
        return Measured(
            database=url.partition(":")[0].partition("+")[0],
            ideal=seconds / _WORKERS,
            took=run.progress.elapsed.total_seconds(),
            partitions=sum(each.kind is PartitionKind.ITEMS for each in run.partitions()),
        )


def print_measured(url: str, *, seconds: float) -> None:
    """Print it."""
    found = measure(url, seconds=seconds)
    print(
        f"\n{_WORKERS} workers, one of {_WORKERS} partitions with {_SHARE_OF_FIRST:.0%} of {seconds:g} s of work "
        "(wanted: 1.30)"
    )
    print(
        f"{found.database}: {found.took:.2f} s, at best {found.ideal:.2f} s: {found.ratio:.2f}; "
        f"{found.partitions} partitions in the end"
    )


@contextmanager
def _worker(url: str) -> Iterator[None]:
    worker = subprocess.Popen([sys.executable, "-m", "benchmarks.stealing", url], cwd=_ROOT)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    with closing(BatchKit(sys.argv[1], queue=LocalQueue())) as made:
        made.work()
