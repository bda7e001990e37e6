"""
What a simulated worker does: the steps of a slice, of `Worker`, of `LocalQueue`'s loop, and of a message on Celery.

Each function follows one of batchkit's, which it names; what that asks of the store is asked of the real one. Whoever
changes those changes these; that they agree is measured (docs/scale.md).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from batchkit.errors import LeaseLost
from batchkit.model import Checkpoint, Lease, RunId, Standing, WakeUp
from batchkit.sizing import Adaptive, AdaptiveSizing, FixedSizing, Sizing
from batchkit.sweep import Swept, sweep
from batchkit.waking import share
from benchmarks.fleet.database import Database
from benchmarks.fleet.kernel import Interrupted, LockTimeout, Process, Signal, Simulation, Steps
from benchmarks.fleet.tally import Ledger, Tally, cursor_of, end_of

if TYPE_CHECKING:
    from batchkit.queue import Queue

JOB = "fleet"
_POLL_SECONDS = 0.25  # queues/local.py
_SWEEP_SECONDS = 5.0  # queues/local.py, queues/sweeper.py
_LONGEST_BACKOFF = 5.0  # queues/local.py
_TRIES, _CHOICE = 5, 1000  # worker.py
_RENEWALS = 3  # lease_timer.py
_CHUNK_TIMEOUT_LEASES = 10
_RELEASE_TRIES = 3  # slicing/slice.py
_HOP_SECONDS, _MOST_HOPS = 0.2, 5  # delivery.py


@dataclass(frozen=True)
class Job:
    """What is worked: what an item costs, and the options of `@batched` that matter here."""

    item_seconds: float = 0.02
    #: a number of items, or the seconds that a chunk is to take
    chunk_size: int | Adaptive = field(default_factory=Adaptive)
    lease: float = 60.0
    slice_time: float = 60.0
    #: how many times what 500 rows cost the database an item costs it, in 500ths
    rows: float = 1 / 500
    #: how much what an item costs varies, by chunk, as a share of it
    varies: float = 0.25


class Broker:
    """Takes messages to workers that wait for one, in the order in which they came. It is the real code's `Queue`."""

    crosses_processes = True
    keeps_messages = True

    def __init__(self, simulation: Simulation, *, latency: float) -> None:
        self._simulation = simulation
        self._latency = latency
        self._messages: deque[tuple[WakeUp, int]] = deque()
        self._idle: deque[Signal] = deque()
        self.sent = 0

    def wake(self, wake_up: WakeUp, hops: int = 0) -> None:
        """Send a message."""
        self.sent += 1
        self._simulation.after(self._latency, lambda: self._arrive(wake_up, hops))

    def take(self) -> Steps[tuple[WakeUp, int]]:
        """Wait for a message."""
        if self._messages:
            yield 0.0
        if self._messages:
            return self._messages.popleft()
        turn = Signal()
        self._idle.append(turn)
        try:
            got = yield turn
        except BaseException:
            turn.abandon()
            raise
        assert isinstance(got, tuple)  # noqa: S101  a signal's value has no type
        return got

    def _arrive(self, wake_up: WakeUp, hops: int) -> None:
        while self._idle:
            turn = self._idle.popleft()
            if not turn.is_given:
                turn.give((wake_up, hops))
                return
        self._messages.append((wake_up, hops))


class Polled:
    """`LocalQueue`: workers look for themselves."""

    crosses_processes = True
    keeps_messages = False

    def wake(self, wake_up: WakeUp) -> None:
        """Do nothing."""


@dataclass
class Around:
    """What all workers share."""

    simulation: Simulation
    database: Database
    queue: Broker | Polled
    tally: Tally
    job: Job
    grace: float
    noise: random.Random
    ledger: Ledger | None = None
    #: sweeps that follow another one sooner are paid for, and find nothing
    sweeps_apart: float = 0.0
    swept_at: float = -1.0
    #: called at each commit with the moment
    on_commit: Callable[[float, int], None] = lambda _, __: None


class Worker:
    """One process that works slices: a child of an instance."""

    def __init__(self, around: Around, name: str) -> None:
        self._around = around
        self._name = name
        self.is_stopping = False
        #: what can be broken off at the end of the grace
        self.is_in_chunk = False
        #: whether it waits for work
        self.is_idle = False
        self._lease: Lease | None = None
        self._chunk: tuple[int, float] | None = None
        self._timer: Process | None = None
        self._is_lost = False
        self._renewed_at = self._chunk_began_at = 0.0

    @property
    def is_working(self) -> bool:
        """Whether it holds a partition."""
        return self._lease is not None

    # The loops

    def poll(self) -> Steps[None]:
        """Do what `work_until_stopped` of LocalQueue does."""
        around = self._around
        backoff, swept_at = _POLL_SECONDS, -_SWEEP_SECONDS
        while not self.is_stopping:
            try:
                if around.simulation.now - swept_at > _SWEEP_SECONDS:
                    yield from swept(around)
                    swept_at = around.simulation.now
                if not (yield from self._work_next()):
                    yield from self._wait(_POLL_SECONDS)
                backoff = _POLL_SECONDS
            except LockTimeout:
                yield from self._wait(backoff)
                backoff = min(backoff * 2, _LONGEST_BACKOFF)

    def listen(self, broker: Broker) -> Steps[None]:
        """Take one message after the other, as a child of Celery's does."""
        while not self.is_stopping:
            self.is_idle = True
            wake_up, hops = yield from broker.take()
            self.is_idle = False
            try:
                yield from self._work_message(broker, wake_up, hops)
            except LockTimeout:
                # `Deliveries` parks the message; a sweep sends its wake-up again.
                self._around.tally.endings["message parked"] += 1

    def is_killed(self) -> None:
        """Take note of a SIGKILL: what it worked comes to nothing, and nobody gives its partition back."""
        now = self._around.simulation.now
        if self._chunk is not None:
            items, began = self._chunk
            self._around.tally.undone(items, seconds=now - began)
        if self._lease is not None:
            self._around.tally.leaves(self._lease, "killed", now=now)
        self._end_timer()

    # worker.py

    def _work_next(self) -> Steps[bool]:
        database = self._around.database
        claimable = database.store.leases.claimable
        found = yield from database.look("looks", "claimable", lambda: claimable(jobs=[JOB], queues=None))
        for run_id, number in found:
            if (yield from self._work_partition(run_id, number)) or (yield from self._work_another(run_id)):
                return True
        return False

    def _work_another(self, run_id: RunId) -> Steps[bool]:
        leases = self._around.database.store.leases
        for _ in range(_TRIES):
            numbers = yield from self._around.database.look(
                "looks", "claimable_in", lambda: leases.claimable_in(run_id, is_due=True, limit=_CHOICE), of=run_id
            )
            if not numbers:
                return False
            if (yield from self._work_partition(run_id, self._around.noise.choice(numbers))):
                return True
        return False

    def _work_partition(self, run_id: RunId, number: int, wake_no: int | None = None) -> Steps[str]:
        """Claim a partition and work it; give how that ended, or nothing where others were quicker."""
        around, database = self._around, self._around.database
        yield from database.counted("claims", "job_of")
        lease = yield from database.call(
            "claims",
            "claim",
            lambda: database.store.leases.claim(
                run_id, number, worker=self._name, seconds=around.job.lease, wake_no=wake_no
            ),
            lock=run_id,
            refused="claim_refused",
        )
        if lease is None:
            return ""
        around.tally.claimed(lease, now=around.simulation.now)
        return (yield from self._work_slice(lease))

    # slicing/

    def _work_slice(self, lease: Lease) -> Steps[str]:
        around = self._around
        self._lease, self._is_lost = lease, False
        self._renewed_at = around.simulation.now
        self._chunk_began_at = around.simulation.now
        self._timer = around.simulation.begin(self._renew())
        try:
            if isinstance(around.queue, Broker):
                yield from self._share(lease.run_id)
            return (yield from self._work_chunks())
        except LeaseLost:
            return (yield from self._lose())
        finally:
            self._end_timer()
            self._lease = None

    def _work_chunks(self) -> Steps[str]:
        around = self._around
        lease = self._held
        sizing = _sizing(lease, around)
        until = around.simulation.now + around.job.slice_time
        while True:
            if self.is_stopping:
                return (yield from self._release("stopped"))
            if self._is_lost:
                raise LeaseLost(lease.run_id, partition=lease.number, fence=lease.fence)
            yield from self._cautious(sizing)
            try:
                standing = yield from self._work_chunk(sizing)
            except Interrupted:
                return (yield from self._release("cut"))
            if standing is None:
                return (yield from self._release("exhausted"))
            if not standing.goes_on:
                return (yield from self._release("requested"))
            if around.simulation.now >= until:
                return (yield from self._release("slice time"))

    def _work_chunk(self, sizing: Sizing) -> Steps[Standing | None]:
        """Read, compute, write and commit; None where nothing is left."""
        around, lease = self._around, self._held
        began = self._chunk_began_at = around.simulation.now
        items = min(sizing.size, end_of(lease) - cursor_of(lease))
        rows = items * around.job.rows
        self._chunk, self.is_in_chunk = (items, began), True
        try:
            yield from around.database.read_chunk(rows=rows)
            if not items:
                return None
            computing = (
                items * around.job.item_seconds * around.noise.uniform(1 - around.job.varies, 1 + around.job.varies)
            )
            yield computing + around.database.chunk_waits()
            yield from around.database.write_chunk(rows=rows)
            self.is_in_chunk = False
            took = around.simulation.now - began
            moved, standing = self._commit(lease, items, took)
        except (Interrupted, LeaseLost) as error:
            around.tally.undone(items, seconds=around.simulation.now - began)
            if isinstance(error, LeaseLost):
                yield from around.database.call(
                    "claims", "position", lambda: around.database.store.leases.position(lease)
                )
            raise
        finally:
            self._chunk, self.is_in_chunk = None, False
        around.tally.committed(lease, items, seconds=took)
        around.on_commit(around.simulation.now, items)
        self._lease = moved
        self._renewed_at = self._chunk_began_at = around.simulation.now
        sizing.took(items, took)
        return standing

    def _commit(self, lease: Lease, items: int, took: float) -> tuple[Lease, Standing]:
        around, low = self._around, cursor_of(lease)
        checkpoint = Checkpoint(
            cursor=str(low + items),
            done=items,
            failed=0,
            carry="{}",
            chunk_size=items,
            rate=items / took,
            chunk_seconds=max(took, (lease.chunk_seconds or 0.0) * 0.95),
        )
        ledger = around.ledger
        write = None if ledger is None else ledger.writing(lease.run_id, low, low + items)
        return around.database.checkpoint(lease, checkpoint, write)

    def _cautious(self, sizing: Sizing) -> Steps[None]:
        """Do what `Caution.before_chunk` does where a worker has died."""
        lease, suspects = self._held, self._around.database.store.suspects
        known = lease.suspicion
        if known is None:
            return
        if known.is_over(place=lease.seq, passed=lease.done + lease.failed):
            self._lease = yield from self._marked(lambda: suspects.forget(lease))
        elif not known.has_entered(place=lease.seq, fence=lease.fence):
            self._lease = yield from self._marked(lambda: suspects.enter(lease, items=sizing.size))

    def _marked(self, mark: Callable[[], Lease]) -> Steps[Lease]:
        return (yield from self._around.database.call("claims", "mark", mark, lock=self._held.run_id))

    def _renew(self) -> Steps[None]:
        """Do what `LeaseTimer` does."""
        around, interval = self._around, self._around.job.lease / _RENEWALS
        renew = around.database.store.leases.renew
        while True:
            yield interval
            now = around.simulation.now
            if (
                now - self._renewed_at < interval
                or now - self._chunk_began_at > around.job.lease * _CHUNK_TIMEOUT_LEASES
            ):
                continue
            if not (yield from around.database.call("renewals", "renew", partial(renew, self._held))):
                self._is_lost = True
                return
            self._renewed_at = around.simulation.now

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.kill()
            self._timer = None

    def _release(self, how: str) -> Steps[str]:
        """Give the partition back; where its run's row is not to be had, the lease runs out by itself."""
        around, lease = self._around, self._held
        left_at = around.simulation.now
        release = around.database.store.leases.release
        for _ in range(_RELEASE_TRIES):
            try:
                yield from around.database.call(
                    "releases",
                    "release",
                    lambda: release(lease, is_exhausted=how == "exhausted", reason=how),
                    lock=lease.run_id,
                )
            except LockTimeout:
                continue
            if how == "exhausted":
                around.tally.endings[how] += 1
            else:
                around.tally.leaves(lease, how, now=left_at)
            return how
        around.tally.leaves(lease, "left to run out", now=left_at)
        return "left to run out"

    def _lose(self) -> Steps[str]:
        lease, around = self._held, self._around
        around.tally.endings["lost"] += 1
        if lease.suspicion is not None:
            take_back = around.database.store.suspects.take_back
            with suppress(LockTimeout):
                yield from around.database.call("claims", "mark", lambda: take_back(lease), lock=lease.run_id)
        return "lost"

    @property
    def _held(self) -> Lease:
        if self._lease is None:
            message = "no lease is held"
            raise RuntimeError(message)
        return self._lease

    # delivery.py

    def _work_message(self, broker: Broker, wake_up: WakeUp, hops: int) -> Steps[None]:
        around, run_id = self._around, wake_up.run_id
        database = around.database
        yield from database.counted("messages", "load")
        if self.is_stopping:
            if hops < _MOST_HOPS:
                yield _HOP_SECONDS
                broker.wake(wake_up, hops + 1)
            return
        turn = around.simulation.now + around.job.slice_time
        how = yield from self._work_partition(run_id, wake_up.partition, wake_no=wake_up.number)
        while how == "exhausted" and self._may_go_on(until=turn):
            how = (yield from self._work_another_as_message(run_id)) or "nothing"
        if how in {"exhausted", "stopped", "cut", "slice time", "left to run out"}:
            yield from database.counted("wake-ups", "is_shared")
            yield from self._share(run_id)
        if how:
            yield from database.counted("messages", "load")

    def _may_go_on(self, *, until: float) -> bool:
        return not self.is_stopping and self._around.simulation.now < until

    def _work_another_as_message(self, run_id: RunId) -> Steps[str]:
        leases = self._around.database.store.leases
        for _ in range(_TRIES):
            numbers = yield from self._around.database.look(
                "looks", "claimable_in", lambda: leases.claimable_in(run_id, is_due=True, limit=_CHOICE), of=run_id
            )
            how = "" if not numbers else (yield from self._work_partition(run_id, self._around.noise.choice(numbers)))
            if how or not numbers:
                return how
        return ""

    def _share(self, run_id: RunId) -> Steps[None]:
        database, queue = self._around.database, self._around.queue
        sent = yield from database.call("wake-ups", "share", lambda: share(database.store, queue, run_id))
        yield from database.counted("wake-ups", "send_one", len(sent))

    def _wait(self, seconds: float) -> Steps[None]:
        self.is_idle = True
        yield seconds
        self.is_idle = False


def swept(around: Around) -> Steps[None]:
    """Sweep once, for real."""
    database, now = around.database, around.simulation.now
    queue: Queue = around.queue
    name = "sweep_messages" if queue.keeps_messages else "sweep_polling"
    if now - around.swept_at < around.sweeps_apart:
        yield from database.counted("sweeps", name)
        return
    around.swept_at = now
    found: list[Swept] = []
    yield from database.call("sweeps", name, lambda: found.append(sweep(database.store, queue)))
    for done in found:
        database.changes += len(done.settled)
        yield from database.counted("sweeps", "release", len(done.settled))
        yield from database.counted("sweeps", "send_one", len(done.woken) if queue.keeps_messages else 0)


def _sizing(lease: Lease, around: Around) -> Sizing:
    wanted = around.job.chunk_size
    if isinstance(wanted, int):
        return FixedSizing(wanted)
    return AdaptiveSizing(wanted, longest=min(lease.seconds / 3, around.grace / 3), first=lease.chunk_size)
