"""The database of the fleet: the real store on SQLite, by the virtual clock, at the speed of a PostgreSQL."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import create_engine, event

from batchkit.model import Checkpoint, Lease, RunId, Standing
from batchkit.store import Clock, HeldConnection, Store
from benchmarks.fleet.kernel import Lock, LockTimeout, Processors, Simulation, Steps
from benchmarks.fleet.prices import Price, Prices

R = TypeVar("R")

#: How long a transaction of the store waits for the lock of a row: `batchkit.store.database`.
LOCK_WAIT_SECONDS = 5.0
_LOOKS_PER_SECOND = 5


@dataclass(frozen=True)
class Server:
    """The server that is imagined: its cores, the time of a round trip to it, and that of a commit's flush."""

    cores: float = 8.0
    round_trip: float = 0.0005
    flush: float = 0.001


class Database:
    """
    Executes each call of the store for real, in one moment of virtual time, and lets virtual time pass for it.

    A call that changes a run holds the lock of its row from before that moment until its commit: SQLite, which
    has one writer, does not show that. *counts* has the statements by kind, *calls* the calls.
    """

    def __init__(self, simulation: Simulation, folder: Path, *, server: Server, prices: Prices) -> None:
        self.simulation = simulation
        self.server = server
        self.processors = Processors(simulation, count=server.cores)
        self.counts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.lock_timeouts = 0
        #: how often something was claimed, given back or swept
        self.changes = 0
        self.longest_lock_wait = 0.0
        self._prices = prices
        self._locks: dict[RunId, Lock] = defaultdict(lambda: Lock(simulation))
        self._kept: dict[tuple[str, str], tuple[int, int, Any]] = {}
        self._began_at = time.time()
        engine = create_engine(f"sqlite:///{folder / 'fleet.db'}")
        event.listen(engine, "connect", _hurry)
        self.store = Store(engine, clock=Clock(lambda: self._began_at + simulation.now - time.time()))
        self.store.schema.migrate()
        # One for all: each chunk is one moment, so no two are ever open at once.
        self._held = HeldConnection(self.store.database, "simulated")

    def close(self) -> None:
        """Close the connections."""
        self._held.close()
        self.store.close()

    def call(
        self, kind: str, name: str, real: Callable[[], R], *, lock: RunId | None = None, refused: str | None = None
    ) -> Steps[R]:
        """
        Do a call of the store; *refused* names its price where it gives nothing.

        Raises:
            LockTimeout: the run's row was locked for too long; nothing was done.
        """
        price = self._prices.of(name)
        first = self._prices.of(refused) if refused else Price(price.cpu / 2, price.statements)
        yield self.server.round_trip
        if lock is not None:
            yield from self._lock(kind, self._locks[lock])
        try:
            yield self.processors.work(first.cpu)
            done = real()
            if lock is not None and done:
                self.changes += 1
            count = price.statements if done or refused is None else first.statements
            self.calls[name if done or refused is None else refused or name] += 1
            self.counts[kind] += round(count)
            rest = max(0.0, price.cpu - first.cpu) if done or refused is None else 0.0
            yield self.processors.work(rest)
            flush = self.server.flush * self.processors.slowness if lock is not None or name == "renew" else 0.0
            yield self.server.round_trip * max(0.0, count - 1) + flush
        finally:
            if lock is not None:
                self._locks[lock].release()
        return done

    def counted(self, kind: str, name: str, times: int = 1) -> Steps[None]:
        """Let the time pass, and count the statements, of calls whose answer is known or that were done already."""
        if times:
            price = self._prices.of(name)
            self.calls[name] += times
            self.counts[kind] += round(price.statements * times)
            yield self.processors.work(price.cpu * times)
            yield self.server.round_trip * price.statements * times

    def look(self, kind: str, name: str, real: Callable[[], R], *, of: str = "") -> Steps[R]:
        """
        Read what may be claimed.

        What was read *of* the same a moment ago is given again, if nothing was claimed or given back since: a thousand
        idle workers ask for the same thing, and each pays for it.
        """
        kept = self._kept.get((name, of))
        if kept is None or kept[:2] != (self.changes, int(self.simulation.now * _LOOKS_PER_SECOND)):
            found = yield from self.call(kind, name, real)
            self._kept[name, of] = (self.changes, int(self.simulation.now * _LOOKS_PER_SECOND), found)
            return found
        yield from self.counted(kind, name)
        kept_found: R = kept[2]
        return kept_found

    def read_chunk(self, *, rows: float) -> Steps[None]:
        """Begin a chunk's transaction and read its items."""
        self.counts["user"] += 1
        yield self.processors.work(self._prices.of("read_chunk").cpu * rows)

    def write_chunk(self, *, rows: float) -> Steps[None]:
        """Write what the function changes, and do all of a checkpoint but what moves the row."""
        self.counts["user"] += 1
        checkpoint = self._prices.of("checkpoint")
        self.counts["checkpoints"] += round(checkpoint.statements)
        self.calls["checkpoint"] += 1
        yield self.processors.work(self._prices.of("write_chunk").cpu * rows + checkpoint.cpu)

    def chunk_waits(self) -> float:
        """Give the seconds of a chunk that are neither the function's nor the processors'."""
        return self.server.round_trip * 5 + self.server.flush * self.processors.slowness

    def checkpoint(
        self, lease: Lease, checkpoint: Checkpoint, write: Callable[[Any], object] | None = None
    ) -> tuple[Lease, Standing]:
        """
        Commit a chunk for real, with what *write* writes.

        Raises:
            LeaseLost: the lease is over; nothing was committed.
        """
        held = self._held
        held.begin(idle=60)
        try:
            if write is not None:
                write(held.connection)
            moved = self.store.leases.checkpoint(held, lease, checkpoint)
        except BaseException:
            held.rollback()
            raise
        held.commit()
        return moved

    def _lock(self, kind: str, lock: Lock) -> Steps[None]:
        began = self.simulation.now
        try:
            yield from lock.acquire(timeout=LOCK_WAIT_SECONDS)
        except LockTimeout:
            self.lock_timeouts += 1
            self.calls[f"lock timeout: {kind}"] += 1
            raise
        finally:
            self.longest_lock_wait = max(self.longest_lock_wait, self.simulation.now - began)


def _hurry(driver: Any, _: object) -> None:  # noqa: ANN401  the driver's connection
    # Nothing of it must outlive the process.
    with closing(driver.cursor()) as cursor:
        for setting in ("synchronous = OFF", "cache_size = -64000"):
            cursor.execute(f"PRAGMA {setting}")
