"""
Add up 100,000 numbers, and write the sum into a report when the last one was added.

    python -m examples.running_sum

The sum so far is carried from chunk to chunk: it is saved with each checkpoint, so it survives a kill as well.
"""

from __future__ import annotations

import os
import sys

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, create_engine, insert, select

from batchkit import BatchKit, Chunk, Finish, Source, batched, span
from batchkit.cli.working import run_with_bar

DATABASE_URL = os.environ.get("BATCHKIT_DATABASE_URL", "sqlite:///batchkit-example.db")

engine = create_engine(DATABASE_URL)
kit = BatchKit(DATABASE_URL)

reports = Table(
    "example_report",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("run", String(26), nullable=False, unique=True),
    Column("total", BigInteger, nullable=False),
)


def numbers(last: int) -> Source[int]:
    """Say where the items come from: the numbers from 1 to *last*."""
    return span(1, last + 1)


def report(finish: Finish, last: int) -> int:  # noqa: ARG001  the source needs it
    """Write the report: once, in the very transaction that makes the run succeeded."""
    # One dict for each partition of the run.
    total = sum(int(str(carry["sum"])) for carry in finish.carries)
    finish.connection.execute(insert(reports).values(run=finish.run_id, total=total))
    # What is returned here is run.result.
    return total


@batched(numbers, chunk_size=200, lease=5, finish=report)
def add_up(chunk: Chunk[int], last: int) -> None:  # noqa: ARG001  the source needs it
    """Add a chunk of numbers to the sum so far."""
    chunk.carry["sum"] = int(str(chunk.carry.get("sum", 0))) + sum(chunk)


def main() -> int:
    """Work one run to its end, then compare its result with the report."""
    kit.migrate()
    reports.metadata.create_all(engine)
    unfinished = kit.runs(job=add_up.name, state=["queued", "running"], limit=1)
    run = unfinished[0] if unfinished else add_up.start(last=100_000)
    code = run_with_bar(kit, run, again="python -m examples.running_sum")
    with engine.connect() as connection:
        reported = connection.scalar(select(reports.c.total).where(reports.c.run == run.id))
    print(f"the result of the run: {run.result}, its report: {reported}, the sum by formula: {100_000 * 100_001 // 2}")
    return code


if __name__ == "__main__":
    sys.exit(main())
