"""A state machine: several workers, a clock that jumps, and every order of what they may do to one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from batchkit.errors import IllegalTransition, LeaseLost
from batchkit.model import Lease, RunError
from batchkit.states import FINAL, TRANSITIONS, RunState
from batchkit.store import HeldConnection
from tests.store.conftest import Bench, next_checkpoint

_ITEMS = 12
_WORKERS = st.integers(0, 2)
_LEASE = 10.0
_ERROR = RunError(type="ValueError", message="bad", traceback="", partition=0, cursor=None)


class Workers(RuleBasedStateMachine):
    """
    Three workers on a run of two partitions, each worker with whatever lease it believes to have.

    The ledger is what chunks write. However the steps are ordered, it holds each item once, and as many items as the
    counters say.
    """

    url = ""

    @initialize()
    def begin(self) -> None:
        """Start a run."""
        self.bench = Bench(self.url)
        with self.bench.store.database.transaction() as tx:
            tx.execute(text("DROP TABLE IF EXISTS ledger"))
            tx.execute(text("CREATE TABLE ledger (part INTEGER, item INTEGER)"))
        self.run_id = self.bench.start(ranges=2)
        self.leases: dict[int, Lease] = {}

    @rule(worker=_WORKERS, part=st.integers(0, 1))
    def claim(self, worker: int, part: int) -> None:
        """A worker forgets the lease it has, as after a kill, and tries to get one."""
        self.leases.pop(worker, None)
        live = [p.number for p in self.bench.store.records.partitions(self.run_id) if p.is_held]
        lease = self.bench.store.leases.claim(self.run_id, part, worker=f"worker {worker}", seconds=_LEASE)
        if lease is not None:
            assert part not in live
            self.leases[worker] = lease

    @precondition(lambda self: self.leases)
    @rule(worker=_WORKERS, items=st.integers(1, 5), dies=st.booleans())
    def chunk(self, worker: int, items: int, dies: bool) -> None:
        """A worker works a chunk of its partition, and commits it if it still may."""
        lease = self.leases.get(worker)
        if lease is None:
            return
        items = min(items, _ITEMS - lease.done)
        held = HeldConnection(self.bench.store.database, self.run_id)
        try:
            held.begin(idle=60)
            for item in range(lease.done, lease.done + items):
                held.connection.execute(text("INSERT INTO ledger VALUES (:p, :i)"), {"p": lease.number, "i": item})
            if dies or items == 0:
                return
            moved, _ = self.bench.store.leases.checkpoint(held, lease, next_checkpoint(lease, items=items))
            held.commit()
            self.leases[worker] = moved
        except LeaseLost:
            del self.leases[worker]
        finally:
            held.close()

    @precondition(lambda self: self.leases)
    @rule(worker=_WORKERS, fails=st.booleans())
    def release(self, worker: int, fails: bool) -> None:
        """A worker gives its partition back: at its end, interrupted, or with an error."""
        lease = self.leases.pop(worker, None)
        if lease is None:
            return
        try:
            if fails:
                self.bench.store.leases.fail(lease, _ERROR, worker=f"worker {worker}")
            else:
                self.bench.store.leases.release(lease, is_exhausted=lease.done == _ITEMS, reason="interrupted")
        except LeaseLost:
            return

    @precondition(lambda self: self.leases)
    @rule(worker=_WORKERS)
    def renew(self, worker: int) -> None:
        """A worker's timer renews its lease."""
        if worker in self.leases and not self.bench.store.leases.renew(self.leases[worker]):
            del self.leases[worker]

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes; long enough, and every lease is over."""
        self.bench.pass_time(seconds)

    @rule(what=st.sampled_from(["pause", "resume", "cancel"]), seldom=st.integers(0, 3))
    def ask(self, what: str, seldom: int) -> None:
        """A person asks for something, and is refused only with the right error."""
        if what == "cancel" and seldom:
            return
        try:
            getattr(self.bench.store.runs, what)(self.run_id)
        except IllegalTransition:
            return

    @rule()
    def sweep(self) -> None:
        """A sweep settles the run if nobody holds it."""
        for run_id in self.bench.store.runs.unattended(limit=10):
            self.bench.store.runs.settle_unattended(run_id)

    @invariant()
    def every_item_is_there_once_and_the_counters_say_so(self) -> None:
        """Compare the ledger with the counters."""
        if not hasattr(self, "run_id"):
            return
        with self.bench.store.database.connect() as tx:
            rows = tx.execute(text("SELECT part, item FROM ledger ORDER BY part, item")).all()
        partitions = self.bench.store.records.partitions(self.run_id)
        assert [(p.number, item) for p in partitions for item in range(p.done)] == [tuple(row) for row in rows]
        assert len(rows) == self.bench.store.records.load(self.run_id).progress.done

    @invariant()
    def states_follow_the_table(self) -> None:
        """Compare the recorded changes with the table, and the end with what it means."""
        if not hasattr(self, "run_id"):
            return
        record = self.bench.store.records.load(self.run_id)
        history = self.bench.store.records.history(self.run_id)
        for change in history[1:]:
            assert change.before is change.after or (change.before, change.after) in TRANSITIONS
        assert record.state is history[-1].after
        assert (record.finished_at is not None) is (record.state in FINAL)
        if record.state is RunState.SUCCEEDED:
            assert 2 * _ITEMS == record.progress.done

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "bench"):
            self.bench.store.close()


def _machine_on(database: str) -> type[Workers]:
    return type("WorkersOnOneDatabase", (Workers,), {"url": database})


@pytest.mark.timeout(300)
def test_no_order_of_steps_loses_or_doubles_an_item_on_a_server(server_url: str):
    run_state_machine_as_test(_machine_on(server_url), settings=_settings(examples=60))


@pytest.mark.timeout(300)
def test_no_order_of_steps_loses_or_doubles_an_item_on_sqlite():
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'machine.db'}"
        run_state_machine_as_test(_machine_on(url), settings=_settings(examples=60))


def _settings(*, examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
