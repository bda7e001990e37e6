"""What very many checkpoints of one partition leave behind on PostgreSQL: sizes, heap-only updates, autovacuum."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from batchkit.model import Checkpoint, RunId
from batchkit.store import HeldConnection, Store
from tests.crowd import Crowd, fill

_CROWD = Crowd("we", unfinished=1, partitions=100)
_TIMED = 10_000
#: No transaction of the run's own is so long; it is how often a slice would give the partition back.
_PER_LEASE = 10_000
_LOOK = """
    SELECT pg_table_size(t.relid), pg_indexes_size(t.relid), t.n_tup_upd, t.n_tup_hot_upd, t.autovacuum_count
    FROM pg_stat_user_tables t WHERE t.relname = 'batchkit_partition'
"""


@dataclass(frozen=True)
class Wear:
    """How the table of the partitions is after some checkpoints."""

    checkpoints: int
    #: the median of the last ten thousand
    milliseconds: float
    table_bytes: int
    index_bytes: int
    updates: int
    heap_only: int
    autovacuums: int


def measure(url: str, *, checkpoints: int, looks: int = 5) -> list[Wear]:
    """Move one of a hundred partitions on so many times, and look at the table now and then."""
    store = Store(url)
    try:
        store.schema.migrate()
        fill(store, _CROWD)
        return _worn(store, checkpoints=checkpoints, every=max(1, checkpoints // looks))
    finally:
        store.close()


def _worn(store: Store, *, checkpoints: int, every: int) -> list[Wear]:
    run_id, done = RunId(_CROWD.unfinished_run(0)), 0
    found, times = [_look(store, done, [0.0])], []
    held = HeldConnection(store.database, run_id)
    while done < checkpoints:
        lease = store.leases.claim(run_id, 50, worker="bench:1", seconds=600)
        if lease is None:
            message = f"nothing of {run_id} could be claimed"
            raise RuntimeError(message)
        for _ in range(min(_PER_LEASE, checkpoints - done)):
            began = time.perf_counter()
            held.begin(idle=600)
            moved = Checkpoint(cursor=str(lease.done), done=50, failed=0, carry="{}", chunk_size=50, rate=100.0)
            lease, _ = store.leases.checkpoint(held, lease, moved)
            held.commit()
            times.append(time.perf_counter() - began)
            done += 1
            if done % every == 0:
                found.append(_look(store, done, times[-_TIMED:]))
        store.leases.release(lease, reason="done", is_interrupt=False)
        del times[:-_TIMED]
    held.close()
    return found


def _look(store: Store, done: int, times: list[float]) -> Wear:
    with store.database.reading() as connection:
        table, indexes, updates, heap_only, autovacuums = connection.exec_driver_sql(_LOOK).one()
    return Wear(done, statistics.median(times) * 1000, table, indexes, updates, heap_only, autovacuums)


def print_wear(url: str, *, checkpoints: int) -> None:
    """Print how the table fares."""
    print("\ncheckpoints   ms each  table kB  indexes kB   heap-only  autovacuums")
    for each in measure(url, checkpoints=checkpoints):
        share = 100 * each.heap_only / each.updates if each.updates else 100
        print(
            f"{each.checkpoints:>11,}{each.milliseconds:10.2f}{each.table_bytes // 1024:10,}"
            f"{each.index_bytes // 1024:12,}{share:11.2f}%{each.autovacuums:13}"
        )
