"""The price of a checkpoint: batchkit against a hand-written keyset loop that commits per chunk and is not safe."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    bindparam,
    create_engine,
    insert,
    select,
    update,
)

from batchkit import BatchKit, Chunk, Job, batched, rows
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.stopping import Stop

metadata = MetaData()
item = Table(
    "bench_item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("times", Integer, nullable=False),
    Column("payload", String(60), nullable=False),
)
bump = update(item).where(item.c.id.between(bindparam("low"), bindparam("high"))).values(times=item.c.times + 1)


@dataclass(frozen=True)
class Measured:
    """Milliseconds per chunk, medians over chunks that were worked in turn."""

    database: str
    chunk_size: int
    chunks: int
    loop: float
    batchkit: float

    @property
    def ratio(self) -> float:
        """What safety costs: 1.0 is nothing."""
        return self.batchkit / self.loop


def fill(engine: Engine, *, items: int) -> None:
    """Make the table anew with *items* rows."""
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as tx:
        for low in range(1, items + 1, 10_000):
            numbers = range(low, min(low + 10_000, items + 1))
            tx.execute(insert(item), [{"id": n, "times": 0, "payload": "x" * 50} for n in numbers])


def measure(url: str, *, chunk_size: int, chunks: int) -> Measured:
    """
    Work chunks in turn within one slice: one of ours, then one of the loop's, and so on.

    Both read the same columns by key and send the same UPDATE through SQLAlchemy Core on the same driver.
    """
    engine = create_engine(url)
    fill(engine, items=chunk_size * (chunks + 1))
    kit = BatchKit(url)
    kit.migrate()
    run = kit.start_run_here(JOBS[job_of(chunk_size).name], "{}")
    ours: list[float] = []
    loops: list[float] = []
    with engine.connect() as connection, Stop() as stop:
        loop = _loop(connection, chunk_size=chunk_size)
        ours_began = time.perf_counter()

        def watch(_: Lease) -> None:
            nonlocal ours_began
            ours.append(time.perf_counter() - ours_began)
            loops.append(next(loop))
            if len(ours) == chunks:
                stop.request("enough was measured")
            ours_began = time.perf_counter()

        kit.work_run(run.id, stop=stop, watch=watch)
    run.refresh().cancel()
    kit.close()
    engine.dispose()
    return Measured(
        database=engine.dialect.name,
        chunk_size=chunk_size,
        chunks=len(ours),
        loop=statistics.median(loops) * 1000,
        batchkit=statistics.median(ours) * 1000,
    )


@functools.cache
def job_of(chunk_size: int) -> Job[[], Row[Any]]:
    """Give the job that does what the loop does, with chunks of this size."""

    @batched(rows(select(item.c.id, item.c.times), key=item.c.id), name=f"bench-{chunk_size}", chunk_size=chunk_size)
    def work(chunk: Chunk[Row[Any]]) -> None:
        chunk.connection.execute(bump, {"low": chunk[0].id, "high": chunk[-1].id})

    return work


def _loop(connection: Connection, *, chunk_size: int) -> Iterator[float]:
    """Give the time of each chunk of the hand-written loop."""
    first = select(item.c.id, item.c.times).order_by(item.c.id).limit(chunk_size)
    behind = first.where(item.c.id > bindparam("after"))
    after: int | None = None
    while True:
        began = time.perf_counter()
        found = connection.execute(first if after is None else behind, {} if after is None else {"after": after}).all()
        if not found:
            return
        after = found[-1].id
        connection.execute(bump, {"low": found[0].id, "high": after})
        connection.commit()
        yield time.perf_counter() - began
