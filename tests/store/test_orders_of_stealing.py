"""Workers that have each other's ranges cut, in every order with all else that happens to a run."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import text

from batchkit.errors import IllegalTransition, LeaseLost
from batchkit.model import Lease, NewRun, Partition, Plan, Range
from batchkit.states import PartitionKind, PartitionState, RunState
from batchkit.store import HeldConnection
from tests.store.conftest import Bench, next_checkpoint

_ITEMS = 60
_PARTITIONS = 6
_WORKERS = 4
_LEASE = 10.0
_STEPS = 150


class Thieves:
    """
    Four workers on a run of three ranges of one line, which may be six, each with whatever lease it believes to have.

    A worker does the items that its lease says, from its cursor to its end. However the steps are ordered, the ledger
    holds each item once, and the open ranges are what is missing in it.
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.chance = random.Random(seed)
        #: how often each step came to something
        self.done: Counter[str] = Counter()
        self.leases: dict[int, Lease] = {}
        with bench.store.database.transaction() as tx:
            tx.execute(text("CREATE TABLE ledger (item INTEGER)"))
        new = NewRun(job="job", params="{}", queue="q", delivery="exactly-once", partitions=_PARTITIONS)
        bench.store.starts.create(new)
        self.run_id = new.id
        bounds = ["-1", str(_ITEMS - 5), str(_ITEMS - 3), str(_ITEMS - 1)]
        plan = Plan(ranges=tuple(Range(*each) for each in itertools.pairwise(bounds)), total=_ITEMS)
        lease = bench.store.leases.plan(bench.claim(new.id), plan)
        bench.store.leases.release(lease, reason="planned", is_interrupt=False)

    def step(self) -> None:
        """Do one thing or another."""
        steps: dict[Callable[[], object], int] = {
            self.claim: 6,
            self.chunk: 8,
            self.want: 2,
            self.cut: 4,
            self.release: 2,
            self.pass_time: 1,
            self.ask: 1,
            self.sweep: 1,
        }
        (chosen,) = self.chance.choices(list(steps), list(steps.values()))
        try:
            chosen()
            self.done[chosen.__name__] += 1
        except (LeaseLost, IllegalTransition) as error:
            self.done[type(error).__name__] += 1

    def claim(self) -> None:
        """A worker forgets the lease it has, as after a kill, and tries to get one."""
        worker = self.chance.randrange(_WORKERS)
        open_ = [each for each in self._partitions() if each.state is PartitionState.OPEN]
        if open_ and (worker not in self.leases or self.chance.random() < 0.2):
            self.leases.pop(worker, None)
            number = self.chance.choice(open_).number
            lease = self.bench.store.leases.claim(self.run_id, number, worker=f"worker {worker}", seconds=_LEASE)
            if lease is not None:
                self.leases[worker] = lease

    def chunk(self) -> None:
        """A worker works a chunk of its range, and commits it if it still may."""
        worker, lease = self._lease()
        first, end = int(lease.cursor or 0) + 1, int(lease.until or 0) + 1
        items = range(first, min(first + self.chance.randint(1, 6), end))
        held = HeldConnection(self.bench.store.database, self.run_id)
        try:
            held.begin(idle=60)
            for item in items:
                held.connection.execute(text("INSERT INTO ledger VALUES (:item)"), {"item": item})
            if not items or self.chance.random() < 0.1:
                return
            checkpoint = replace(next_checkpoint(lease, items=len(items)), cursor=str(items[-1]))
            moved, _ = self.bench.store.leases.checkpoint(held, lease, checkpoint)
            held.commit()
            self.leases[worker] = moved
        finally:
            held.close()

    def want(self) -> None:
        """A worker that finds nothing wants some range cut."""
        store = self.bench.store.stealing
        missing, worked = store.missing(self.run_id), store.worked(self.run_id, limit=10)
        if missing and worked:
            store.want_cuts(self.run_id, self.chance.choice(worked), cuts=missing)

    def cut(self) -> None:
        """A worker cuts its range; one that does not hear of it gives the range back, as it must."""
        worker, lease = self._lease()
        first, end, parts = int(lease.cursor or 0) + 1, int(lease.until or 0) + 1, self.chance.randint(2, 4)
        cuts = {first + (end - first) * number // parts - 1 for number in range(1, parts)} - {first - 1, end - 1}
        if not cuts:
            return
        shorter = self.bench.store.stealing.cut(lease, [str(cut) for cut in sorted(cuts)])
        self.done["shorter"] += shorter.until != lease.until
        if self.chance.random() < 0.2:
            del self.leases[worker]
            self.bench.store.leases.release(lease, reason="whether it was cut is not known")
        else:
            self.leases[worker] = shorter

    def release(self) -> None:
        """A worker gives its partition back, at its end or interrupted."""
        worker, lease = self._lease()
        del self.leases[worker]
        self.bench.store.leases.release(lease, is_exhausted=lease.cursor == lease.until, reason="interrupted")

    def pass_time(self) -> None:
        """Time passes; long enough, and every lease is over, though its holder may not know."""
        self.bench.pass_time(self.chance.choice([1.0, 4.0, 11.0]))

    def ask(self) -> None:
        """A person asks for something."""
        runs = self.bench.store.runs
        self.chance.choice([runs.pause, runs.resume, runs.resume, runs.resume])(self.run_id)

    def sweep(self) -> None:
        """A sweep settles the run if nobody holds it."""
        for run_id in self.bench.store.runs.unattended(limit=10):
            self.bench.store.runs.settle_unattended(run_id)

    def check(self) -> None:
        """Compare the ledger with the partitions."""
        with self.bench.store.database.connect() as tx:
            done = list(tx.execute(text("SELECT item FROM ledger ORDER BY item")).scalars())
        partitions = self._partitions()
        open_ = [item for each in partitions for item in _left(each)]
        assert list(range(_ITEMS)) == sorted([*done, *open_])
        # They are given in the order of their items, whatever their numbers.
        assert sorted(open_) == open_
        record = self.bench.store.records.load(self.run_id)
        assert (len(done), len(done)) == (record.progress.done, sum(each.done for each in partitions))
        assert sum(each.state is PartitionState.OPEN for each in partitions) <= _PARTITIONS
        assert not (record.state is RunState.SUCCEEDED and open_)

    def finish(self) -> None:
        """Work what is left, one range after the other."""
        self.bench.pass_time(_LEASE + 1)
        self.leases.clear()
        self.sweep()
        if self.bench.store.records.load(self.run_id).state is RunState.PAUSED:
            self.bench.store.runs.resume(self.run_id)
        for each in self._partitions():
            if each.state is PartitionState.OPEN:
                lease = self.bench.claim(self.run_id, each.number)
                items = _left(each)
                with self.bench.store.database.transaction() as tx:
                    for item in items:
                        tx.execute(text("INSERT INTO ledger VALUES (:item)"), {"item": item})
                checkpoint = replace(next_checkpoint(lease, items=len(items)), cursor=str(lease.until))
                held = HeldConnection(self.bench.store.database, self.run_id)
                held.begin(idle=60)
                lease, _ = self.bench.store.leases.checkpoint(held, lease, checkpoint)
                held.commit()
                held.close()
                self.bench.store.leases.release(lease, is_exhausted=True, reason="done")

    def _lease(self) -> tuple[int, Lease]:
        if not self.leases:
            raise LeaseLost(self.run_id, partition=0, fence=0)
        return self.chance.choice(sorted(self.leases.items(), key=lambda each: each[0]))

    def _partitions(self) -> list[Partition]:
        return self.bench.store.records.partitions(self.run_id)


def _left(partition: Partition) -> range:
    assert PartitionKind.ITEMS is partition.kind
    assert isinstance(partition.cursor, int)
    assert isinstance(partition.until, int)
    return range(partition.cursor + 1, partition.until + 1)


@pytest.mark.parametrize("walk", range(4))
def test_no_order_of_cuts_loses_or_doubles_an_item(bench: Bench, walk: int):
    seed = random.randrange(1 << 32)
    thieves = Thieves(bench, seed)
    try:
        for _ in range(_STEPS):
            thieves.step()
            thieves.check()
        thieves.finish()
        thieves.check()
        assert RunState.SUCCEEDED is bench.store.records.load(thieves.run_id).state
    except BaseException:
        print(f"seed {seed}: {thieves.done}")  # noqa: T201  to do it again
        raise
