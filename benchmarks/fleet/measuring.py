"""Measuring prices on a real PostgreSQL: processor time of its processes, and statements by pg_stat_statements."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

from sqlalchemy import bindparam, create_engine, select, text

from batchkit.model import Checkpoint, Lease, NewRun, Plan, Range, RunId, WakeUp
from batchkit.store import HeldConnection, Store
from batchkit.sweep import sweep
from benchmarks.fleet.prices import Measured, Price, write
from benchmarks.safety import bump, fill, item
from tests.servers.postgres import PostgresServer

#: Runs, partitions of each, and workers that hold some of these.
SIZES = [(1, 40, 10), (1, 400, 100), (1, 4000, 1000), (1, 12000, 3000), (20, 200, 1000), (1000, 4, 1000)]
CHUNK_ROWS = 500
_TIMES = 100
_JOB = "fleet"


class NoMessages:
    """A queue whose workers find their work in the database."""

    crosses_processes = True
    keeps_messages = False

    def wake(self, wake_up: WakeUp) -> None:
        """Do nothing, as `LocalQueue` does."""


class Unheard(NoMessages):
    """A queue whose messages nobody takes."""

    keeps_messages = True


@contextmanager
def counting_server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that counts statements."""
    with closing(PostgresServer()) as server:
        server.start()
        with server.connect() as connection:
            for setting in (
                "shared_preload_libraries = 'pg_stat_statements'",
                "pg_stat_statements.track_utility = on",
                "max_connections = 400",
                "shared_buffers = '128MB'",
            ):
                connection.execute(f"ALTER SYSTEM SET {setting}")
        server.restart(immediate=False)
        yield server


def counted_database(server: PostgresServer, name: str) -> str:
    """Make a database in which statements can be counted."""
    url = server.create_database(name)
    with server.connect(name) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return url


class Meter:
    """Reads what a server has done so far."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._server = server
        self._database = database
        with server.connect() as connection:
            self._main = _parent_of(connection.info.backend_pid)

    def cpu(self) -> dict[int, float]:
        """Give the processor seconds of each of its processes."""
        spent = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            pid = int(status.parent.name)
            try:
                if _parent_of(pid) == self._main:
                    spent[pid] = int((status.parent / "schedstat").read_text().split()[0]) / 1e9
            except (OSError, IndexError):
                # It has ended.
                continue
        return spent

    def statements(self) -> dict[str, int]:
        """Give how often each statement was sent; what `BEGIN` brings along in the same round trip is no other one."""
        with self._server.connect(self._database) as connection:
            rows = connection.execute(
                "SELECT query, sum(calls)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid "
                "WHERE d.datname = current_database() AND query NOT LIKE 'SET LOCAL%' "
                "AND query NOT LIKE '%pg_stat_statements%' GROUP BY query"
            ).fetchall()
        return dict(rows)

    def price(self, action: Callable[[], object], *, times: int) -> Price:
        """Do *action* so often, and give what one costs."""
        statements = sum(self.statements().values())
        before = self.cpu()
        for _ in range(times):
            action()
        spent = sum(seconds - before.get(pid, 0.0) for pid, seconds in self.cpu().items())
        return Price(spent / times, (sum(self.statements().values()) - statements) / times)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def measure_all() -> None:
    """Measure the prices at each size, and keep them."""
    found = []
    with counting_server() as server:
        for number, (runs, partitions, workers) in enumerate(SIZES):
            url = counted_database(server, f"fleet{number}")
            found.append(_measure(server, url, f"fleet{number}", runs=runs, partitions=partitions, workers=workers))
            print(f"measured {runs:,} runs of {partitions:,} partitions, {workers:,} workers")
    write(found)


def start_run(store: Store, *, partitions: int, items: int) -> RunId:
    """Start a run and plan it, so that every partition of it can be claimed; cursors are numbers of items."""
    new = NewRun(job=_JOB, params="{}", queue="default", delivery="exactly-once", partitions=partitions)
    store.starts.create(new)
    lease = store.leases.claim(new.id, 0, worker="planner", seconds=1)
    if lease is None:
        message = f"run {new.id} was claimed by another"
        raise RuntimeError(message)
    edges = [items * number // partitions for number in range(partitions + 1)]
    ranges = tuple(Range(after=json.dumps(low), until=json.dumps(high)) for low, high in pairwise(edges))
    planned = store.leases.plan(lease, Plan(ranges=ranges, total=items))
    store.leases.release(planned, reason="planned", is_interrupt=False)
    return new.id


def commit_chunk(store: Store, held: HeldConnection, lease: Lease, *, items: int) -> Lease:
    """Commit a chunk that writes nothing else."""
    held.begin(idle=60)
    moved, _ = store.leases.checkpoint(
        held,
        lease,
        Checkpoint(
            cursor=str(lease.done + items),
            done=items,
            failed=0,
            carry="{}",
            chunk_size=items,
            rate=1.0,
            chunk_seconds=1.0,
        ),
    )
    held.commit()
    return moved


def _measure(server: PostgresServer, url: str, name: str, *, runs: int, partitions: int, workers: int) -> Measured:
    meter = Meter(server, name)
    store = Store(url)
    store.schema.migrate()
    ids = [start_run(store, partitions=partitions, items=partitions * 1000) for _ in range(runs)]
    leases = []
    for number in range(workers):
        lease = store.leases.claim(ids[number % runs], number // runs, worker=f"host-{number}:1", seconds=3600)
        if lease is not None:
            leases.append(lease)
    for worker in range(min(200, workers)):
        store.fleet.attend(
            f"host-{worker}:1", instance=f"host-{worker}", kind="local", queues=None, slots=8, is_new=True
        )
    with server.connect(name) as connection:
        connection.execute("VACUUM ANALYZE")
    by_call = _prices(store, meter, leases, ids, free=partitions - -(-workers // runs))
    by_call |= _users_prices(url, meter)
    store.close()
    return Measured(runs=runs, partitions=partitions, workers=workers, by_call=by_call)


def _prices(store: Store, meter: Meter, leases: list[Lease], ids: list[RunId], *, free: int) -> dict[str, Price]:
    run_id, held_lease = ids[0], leases[0]
    times = max(10, min(_TIMES, 200_000 // len(store.records.partitions(run_id)) // len(ids)))
    found = _shares(store, meter, run_id, times=min(20, free - 1))
    for _ in range(2):
        # What waits is sent by the first; the price is that of a sweep which finds nothing.
        sweep(store, Unheard())
    found |= {
        "claimable": meter.price(lambda: store.leases.claimable(jobs=[_JOB], queues=None), times=times),
        "claimable_in": meter.price(lambda: store.leases.claimable_in(run_id, is_due=True, limit=20), times=times),
        "job_of": meter.price(lambda: store.records.job_of(run_id), times=_TIMES),
        "load": meter.price(lambda: store.records.load(run_id), times=times),
        "is_shared": meter.price(lambda: store.wake_ups.is_shared(run_id), times=_TIMES),
        "waiting": meter.price(lambda: store.wake_ups.waiting(run_id, limit=1), times=times),
        "renew": meter.price(lambda: store.leases.renew(held_lease), times=_TIMES),
        "position": meter.price(lambda: store.leases.position(held_lease), times=_TIMES),
        "claim_refused": meter.price(
            lambda: store.leases.claim(run_id, held_lease.number, worker="late:1", seconds=60), times=_TIMES
        ),
        "attend": meter.price(
            lambda: store.fleet.attend("host-0:1", instance="host-0", kind="local", queues=None, slots=8), times=_TIMES
        ),
        "sweep_polling": meter.price(lambda: sweep(store, NoMessages()), times=max(5, times // 5)),
        "sweep_messages": meter.price(lambda: sweep(store, Unheard()), times=max(5, times // 5)),
    }
    found |= _claims(store, meter, run_id, first_free=len(leases) // len(ids), free=free, times=times)
    with closing(HeldConnection(store.database, run_id)) as held:
        lease = held_lease

        def chunk() -> None:
            nonlocal lease
            lease = commit_chunk(store, held, lease, items=1)

        found["checkpoint"] = meter.price(chunk, times=_TIMES * 3)
    return found


def _claims(store: Store, meter: Meter, run_id: RunId, *, first_free: int, free: int, times: int) -> dict[str, Price]:
    numbers = iter(range(first_free + 1, first_free + free))
    taken: list[Lease] = []

    def claim() -> None:
        lease = store.leases.claim(run_id, next(numbers), worker="new:1", seconds=3600)
        if lease is not None:
            taken.append(lease)

    times = min(times, free - 1, 50)
    found = {"claim": meter.price(claim, times=times)}
    times = len(taken)
    found["release"] = meter.price(lambda: store.leases.release(taken.pop(), reason="interrupted"), times=times)
    return found


def _shares(store: Store, meter: Meter, run_id: RunId, *, times: int) -> dict[str, Price]:
    sent: list[WakeUp] = []
    return {
        "share_one": meter.price(
            lambda: sent.extend(store.wake_ups.take_shares(run_id, window=len(sent) + 1)), times=times
        ),
        "share": meter.price(lambda: store.wake_ups.take_shares(run_id, window=1), times=times),
    }


def _users_prices(url: str, meter: Meter) -> dict[str, Price]:
    """Measure what a user's chunk costs that reads and changes 500 rows."""
    engine = create_engine(url)
    fill(engine, items=CHUNK_ROWS * 120)
    behind = select(item.c.id, item.c.times).where(item.c.id > bindparam("after")).order_by(item.c.id).limit(CHUNK_ROWS)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
        after = iter(range(0, CHUNK_ROWS * 110, CHUNK_ROWS))
        low = iter(range(1, CHUNK_ROWS * 110, CHUNK_ROWS))

        def change() -> None:
            first = next(low)
            connection.execute(bump, {"low": first, "high": first + CHUNK_ROWS - 1})

        found = {
            "read_chunk": meter.price(lambda: connection.execute(behind, {"after": next(after)}).all(), times=_TIMES),
            "write_chunk": meter.price(change, times=_TIMES),
        }
    engine.dispose()
    return found


if __name__ == "__main__":
    os.nice(5)
    measure_all()
