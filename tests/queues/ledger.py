"""What the jobs of the queues' tests write, and how it is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
    text,
)

from batchkit.suspicion import Suspicion

metadata = MetaData()
item = Table("item", metadata, Column("id", Integer, primary_key=True), Column("times", Integer, nullable=False))
#: Items of many runs: each run does those of its batch.
batch_item = Table(
    "batch_item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("batch", Integer, nullable=False, index=True),
    Column("times", Integer, nullable=False),
)
called = Table("called", metadata, Column("id", Integer, primary_key=True), Column("what", String(200)))


@contextmanager
def open_ledger(url: str) -> Iterator[Connection]:
    """Open a transaction on a connection of its own."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as tx:
        yield tx


def fill(url: str, *, items: int) -> None:
    """Make the tables, and items that were never done."""
    with open_ledger(url) as tx:
        metadata.create_all(tx)
        tx.execute(insert(item), [{"id": number, "times": 0} for number in range(1, items + 1)])


def fill_batch(url: str, batch: int, *, items: int) -> None:
    """Make the items of a batch, which were never done."""
    with open_ledger(url) as tx:
        tx.execute(insert(batch_item), [{"batch": batch, "times": 0} for _ in range(items)])


def is_bad(number: int) -> bool:
    """Say that an item of a batch cannot be processed."""
    return number % 100 == 7


def bad_items(url: str) -> dict[int, int]:
    """Count the bad items of each batch."""
    with open_ledger(url) as tx:
        rows = tx.execute(select(batch_item.c.batch, batch_item.c.id))
        return dict(Counter(batch for batch, number in rows if is_bad(number)))


def batch_times(url: str) -> dict[int, dict[int, int]]:
    """Count, for each batch, the items that were done so often."""
    columns = (batch_item.c.batch, batch_item.c.times, func.count())
    found: dict[int, dict[int, int]] = {}
    with open_ledger(url) as tx:
        for batch, times_, count in tx.execute(select(*columns).group_by(*columns[:2])):
            found.setdefault(batch, {})[times_] = count
    return found


def times(url: str) -> dict[int, int]:
    """Count the items that were done so often; {1: all} is how it should be."""
    with open_ledger(url) as tx:
        return dict(tuple(row) for row in tx.execute(select(item.c.times, func.count()).group_by(item.c.times)))


def note(url: str, *args: object) -> None:
    """Write down what a worker is to see."""
    with open_ledger(url) as tx:
        tx.execute(insert(called), {"what": repr(args)})


def let_announcement_be_due(url: str) -> None:
    """Let the time be over that telling of a run's end was given."""
    due = "now() - interval '1 second'"
    with open_ledger(url) as tx:
        changed = tx.execute(text(f"UPDATE batchkit_run SET announce_at = {due}, announcing_until = {due}"))
        assert 1 == changed.rowcount


@contextmanager
def runs_locked(url: str) -> Iterator[None]:
    """Keep everybody from reading and writing runs."""
    with open_ledger(url) as tx:
        tx.execute(text("LOCK TABLE batchkit_run IN ACCESS EXCLUSIVE MODE"))
        yield


def let_leases_run_out(url: str) -> None:
    """Let the time of all leases be over."""
    with open_ledger(url) as tx:
        tx.execute(text("UPDATE batchkit_partition SET lease_expires_at = now() - interval '1 second'"))


def suspicion(url: str) -> Suspicion | None:
    """Give what is known of the place that the only partition does not get past."""
    with open_ledger(url) as tx:
        return Suspicion.read(tx.execute(text("SELECT suspicion FROM batchkit_partition")).scalar_one())


def is_lock_wanted(url: str) -> bool:
    """Tell whether a task looks for the run of its message, and has to wait."""
    waiting = "wait_event_type = 'Lock' AND query LIKE '%start_key = %'"
    with open_ledger(url) as tx:
        return bool(tx.execute(text(f"SELECT count(*) FROM pg_stat_activity WHERE {waiting}")).scalar_one())


def is_announcement_due(url: str) -> bool:
    """Tell whether a sweep has yet to look after the end that is to be told."""
    with open_ledger(url) as tx:
        return bool(tx.execute(text("SELECT announce_at <= now() FROM batchkit_run")).scalar_one())


def is_announced(url: str) -> bool:
    """Tell whether the run's end is known to have been told."""
    with open_ledger(url) as tx:
        return tx.execute(text("SELECT announce_at FROM batchkit_run")).scalar_one() is None


def calls(url: str) -> list[str]:
    """Give what was written down by `note`."""
    with open_ledger(url) as tx:
        return list(tx.execute(select(called.c.what).order_by(called.c.id)).scalars())
