"""A store on each database, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from batchkit.model import Checkpoint, Lease, NewRun, Plan, Range, RunId, Standing
from batchkit.store import Clock, HeldConnection, Store


class Bench:
    """Does with a store what slices do, a step at a time."""

    def __init__(self, url: str) -> None:
        self._ahead = 0.0
        self.store = Store(url, clock=Clock(lambda: self._ahead))
        self.store.schema.migrate()

    def close(self) -> None:
        """Close the pooled connections."""
        self.store.close()

    def pass_time(self, seconds: float) -> None:
        """Let the database's clock run ahead."""
        self._ahead += seconds

    def start(self, *, ranges: int = 1, has_finish: bool = False, max_workers: int | None = None) -> RunId:
        """Start a run and plan it, so that every partition of it can be claimed."""
        new = NewRun(
            job="job",
            params="{}",
            queue="default",
            delivery="exactly-once",
            partitions=ranges,
            max_workers=max_workers,
        )
        self.store.starts.create(new)
        lease = self.claim(new.id)
        plan = Plan(ranges=tuple(Range() for _ in range(ranges)), total=100, has_finish=has_finish)
        self.store.leases.release(self.store.leases.plan(lease, plan), reason="planned", is_interrupt=False)
        return new.id

    def claim(self, run_id: RunId, number: int = 0, *, seconds: float = 10.0, worker: str = "worker") -> Lease:
        """Claim a partition that must be free."""
        lease = self.store.leases.claim(run_id, number, worker=worker, seconds=seconds)
        assert lease is not None
        return lease

    def checkpoint(self, lease: Lease, *, items: int = 1) -> tuple[Lease, Standing]:
        """Commit a chunk."""
        held = HeldConnection(self.store.database, lease.run_id)
        try:
            held.begin(idle=60)
            moved = self.store.leases.checkpoint(held, lease, next_checkpoint(lease, items=items))
            held.commit()
            return moved
        finally:
            held.close()


def next_checkpoint(lease: Lease, *, items: int = 1) -> Checkpoint:
    """Make the checkpoint that moves the lease's partition on by *items*."""
    return Checkpoint(cursor=str(lease.done + items), done=items, failed=0, carry="{}", chunk_size=items, rate=1.0)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """Give a store with its tables, on each database in turn."""
    with closing(Bench(database_url)) as made:
        yield made


@pytest.fixture
def server_bench(server_url: str) -> Iterator[Bench]:
    """Give a store with its tables on each database where two transactions really run at once."""
    with closing(Bench(server_url)) as made:
        yield made


@pytest.fixture
def sqlite_bench(sqlite_url: str) -> Iterator[Bench]:
    """Give a store with its tables on SQLite."""
    with closing(Bench(sqlite_url)) as made:
        yield made
