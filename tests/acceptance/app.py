"""
A job for workers that are killed, stopped and cut off: `python -m tests.acceptance.app URL [FAULT]`.

Each item's row counts how often it was done, so that an item done twice shows as 2 and a lost one as 0.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, func, insert, select, update

from batchkit import BatchKit, Chunk, Source, Steps, batched, resumable, rows
from batchkit.model import Lease
from batchkit.stopping import Stop, stopped_by_signals
from tests.acceptance import gate, origins

LEASE_SECONDS = 1.0
CHUNK_SIZE = 10

metadata = MetaData()
item = Table("item", metadata, Column("id", Integer, primary_key=True), Column("times", Integer, nullable=False))

#: The faults that a worker inflicts upon itself at a certain place.
STOPS_IN_CHUNK = "stops-in-chunk"
STOPS_BETWEEN_CHUNKS = "stops-between-chunks"
_fault = ""


def _items(folder: str = "") -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_items, name="count-items", chunk_size=CHUNK_SIZE, lease=LEASE_SECONDS)
def count_items(chunk: Chunk[int], folder: str = "") -> None:
    """Count each item of the chunk as done once more, no further than a gate in the folder allows."""
    if folder:
        gate.wait(folder, chunk[-1])
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    time.sleep(0.002)  # work that takes its time, so that kills fall into it
    if _fault == STOPS_IN_CHUNK and chunk.number == 5:
        os.kill(os.getpid(), signal.SIGSTOP)


@batched(origins.numbers, name="count-from-source", chunk_size=CHUNK_SIZE, lease=LEASE_SECONDS)
def count_from_source(chunk: Chunk[object], kind: str, place: str) -> None:
    """Count each number that the source gives as done once more."""
    numbers = [origins.number_of(each) for each in chunk]
    gate.wait(origins.folder_of(place), numbers[-1])
    chunk.connection.execute(update(item).where(item.c.id.in_(numbers)).values(times=item.c.times + 1))
    time.sleep(0.01)  # work that takes its time, so that kills fall into it


@resumable(name="count-in-steps", lease=LEASE_SECONDS)
def count_in_steps(steps: Steps[int], items: int, folder: str) -> Iterator[int]:
    """Count each item as done once more, ten of them a step, the last ones behind the last yield."""
    done = steps.cursor or 0
    while True:
        until = min(done + CHUNK_SIZE, items)
        gate.wait(folder, until)
        chosen = item.c.id.between(done + 1, until)
        steps.connection.execute(update(item).where(chosen).values(times=item.c.times + 1))
        steps.count(until - done)
        time.sleep(0.002)  # work that takes its time, so that kills fall into it
        done = until
        if done == items:
            return
        yield done


def prepare(url: str, *, items: int) -> BatchKit:
    """Make the tables and items, and a kit."""
    engine = create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(item), [{"id": number, "times": 0} for number in range(1, items + 1)])
    engine.dispose()
    kit = BatchKit(url)
    kit.migrate()
    return kit


def times(url: str) -> dict[int, int]:
    """Count the items that were done so often; {1: all} is how it should be."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(select(item.c.times, func.count()).group_by(item.c.times)).all()
    engine.dispose()
    return dict(tuple(row) for row in found)


def main(url: str, fault: str = "") -> None:
    """Work, until SIGTERM or until the fault."""
    global _fault  # noqa: PLW0603  the process is the job's
    _fault = fault
    kit = BatchKit(url)
    if fault != STOPS_BETWEEN_CHUNKS:
        kit.work()
        return

    def watch(lease: Lease) -> None:
        if lease.seq == 5:
            os.kill(os.getpid(), signal.SIGSTOP)

    (run,) = kit.runs(job="count-items", limit=1)
    with Stop() as stop, stopped_by_signals(stop):
        kit.work_run(run.id, stop=stop, watch=watch)


if __name__ == "__main__":
    main(*sys.argv[1:])
