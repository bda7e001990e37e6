"""What the jobs write: how often each item was done, and when each part that must not be cut short began and ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
    update,
)

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("batch", Integer, nullable=False, index=True),
    Column("times", Integer, nullable=False),
)
section = Table(
    "section",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker", String(100), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True)),
)


@dataclass(frozen=True)
class Section:
    """A part of a chunk that must not be cut short."""

    worker: str
    began_at: datetime
    ended_at: datetime | None


def connect(url: str) -> Engine:
    """Open the ledger; each statement commits by itself."""
    return create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)


def fill(engine: Engine, batch: int, items: int) -> None:
    """Make the items of a batch, which were never done."""
    with engine.connect() as connection:
        connection.execute(insert(item), [{"batch": batch, "times": 0} for _ in range(items)])


def times(engine: Engine, batches: list[int]) -> Counter[int]:
    """Count the items of *batches* that were done so often; {1: all} is how it should be."""
    statement = (
        select(item.c.times, func.count().label("items")).where(item.c.batch.in_(batches)).group_by(item.c.times)
    )
    with engine.connect() as connection:
        return Counter({row.times: row.items for row in connection.execute(statement)})


def unfinished(engine: Engine, batches: list[int]) -> int:
    """Count the *batches* of which an item was never done."""
    statement = select(func.count(item.c.batch.distinct())).where(item.c.batch.in_(batches), item.c.times == 0)
    with engine.connect() as connection:
        return int(connection.execute(statement).scalar_one())


def sections(engine: Engine) -> list[Section]:
    """Give all parts that must not be cut short, in the order of their beginning."""
    columns = (section.c.worker, section.c.began_at, section.c.ended_at)
    with engine.connect() as connection:
        return [Section(*row) for row in connection.execute(select(*columns).order_by(section.c.began_at))]


@contextmanager
def noted(engine: Engine, worker: str, seconds: float) -> Iterator[None]:
    """Note the beginning and the end of a part that takes so many *seconds*; an end that is missing was cut short."""
    with engine.connect() as connection:
        began = insert(section).values(worker=worker, seconds=seconds, began_at=func.clock_timestamp())
        number = connection.execute(began.returning(section.c.id)).scalar_one()
    time.sleep(seconds)
    yield
    with engine.connect() as connection:
        ended = update(section).where(section.c.id == number).values(ended_at=func.clock_timestamp())
        connection.execute(ended)
