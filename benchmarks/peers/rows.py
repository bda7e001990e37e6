"""The rows that all systems work, and the one thing they do with them: read a chunk by key, UPDATE it, commit."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

DATABASE = "BENCH_DATABASE"
REDIS = "BENCH_REDIS"
#: Where each chunk waits: {"moment": "inside" or "after" its commit, "seconds": ..., "gate": a path}. While there is a
#: file at the gate, a chunk stands there until it is killed, and says so by a file beside it.
PAUSE = "BENCH_PAUSE"
#: How many turns of a loop in Python a chunk takes besides.
BURN = "BENCH_BURN"

metadata = MetaData()
#: done_at is the database's clock, so that no waiting for the end is in a figure. Id 0, where it is, is for a callback.
item = Table(
    "bench_item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("times", Integer, nullable=False),
    Column("done_at", DateTime(timezone=True)),
    Column("payload", String(60), nullable=False),
)
FINISH = 0
_HELD_SECONDS = 600.0

_columns = select(item.c.id, item.c.times)
behind = _columns.where(item.c.id > bindparam("after")).order_by(item.c.id).limit(bindparam("size"))
between = _columns.where(item.c.id.between(bindparam("low"), bindparam("high"))).order_by(item.c.id)
bump = (
    update(item)
    .where(item.c.id.between(bindparam("low"), bindparam("high")))
    .values(times=item.c.times + 1, done_at=func.clock_timestamp())
)


class Work(NamedTuple):
    """How many chunks, and of how many rows."""

    chunks: int
    size: int

    @property
    def items(self) -> int:
        """How many rows."""
        return self.chunks * self.size

    def ranges(self) -> list[tuple[int, int]]:
        """Give the lowest and highest id of each chunk, for systems that split beforehand."""
        return [(low, low + self.size - 1) for low in range(1, self.items + 1, self.size)]


@functools.cache
def engine() -> Engine:
    """Give the process's engine."""
    return create_engine(os.environ[DATABASE])


def work(low: int, high: int) -> None:
    """Work a chunk that was split beforehand, in a transaction of its own."""
    with engine().begin() as tx:
        tx.execute(between, {"low": low, "high": high}).all()
        change(tx, low, high)
    pause("after")


def work_behind(after: int, size: int) -> int | None:
    """Work the chunk behind a key, in a transaction of its own, and give the key of its last row."""
    with engine().begin() as tx:
        found = tx.execute(behind, {"after": after, "size": size}).all()
        if found:
            change(tx, found[0].id, found[-1].id)
    pause("after")
    return found[-1].id if found else None


def change(tx: Connection | Session, low: int, high: int) -> None:
    """Do to a chunk what is done to it, in somebody's transaction."""
    burn()
    tx.execute(bump, {"low": low, "high": high})
    pause("inside")


def finish() -> None:
    """Do what a callback does after all chunks."""
    with engine().begin() as tx:
        tx.execute(bump, {"low": FINISH, "high": FINISH})


def pause(moment: str) -> None:
    """Wait, where this is the moment for it; at the gate until somebody kills this process."""
    wanted = _pause()
    if wanted is None or wanted["moment"] != moment:
        return
    gate = Path(str(wanted["gate"]))
    if gate.exists():
        reached(gate).touch()
        time.sleep(_HELD_SECONDS)
    time.sleep(float(wanted["seconds"]))


def pauses_after() -> bool:
    """Tell whether chunks wait after their commit."""
    wanted = _pause()
    return wanted is not None and wanted["moment"] == "after"


def reached(gate: Path) -> Path:
    """Give the file that says that a chunk stands at a gate."""
    return gate.with_suffix(".reached")


def burn() -> None:
    """Use the processor, in Python."""
    total = 0
    for turn in range(_turns()):
        total += turn * turn


@functools.cache
def _turns() -> int:
    return int(os.environ.get(BURN, "0"))


@functools.cache
def _pause() -> dict[str, str | float] | None:
    text = os.environ.get(PAUSE)
    if not text:
        return None
    found: dict[str, str | float] = json.loads(text)
    return found


def redis_url() -> str:
    """Give the address of the Redis."""
    return os.environ[REDIS]


def postgres_url() -> str:
    """Give the address of the database for those who are no SQLAlchemy."""
    return os.environ[DATABASE].replace("postgresql+psycopg://", "postgresql://")
