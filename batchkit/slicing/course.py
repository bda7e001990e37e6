"""The course of a slice: its lease as it moves on, and what every way of working a partition needs."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from batchkit.busy import is_interruptible
from batchkit.caution import Caution
from batchkit.cutting import Cutter
from batchkit.errors import LeaseLost
from batchkit.isolation import Isolation, Refused
from batchkit.job import Definition
from batchkit.lease_timer import LeaseTimer
from batchkit.model import Lease
from batchkit.promises import EXACTLY_ONCE
from batchkit.sizing import AdaptiveSizing, FixedSizing, Sizing
from batchkit.slicing.outcome import Ending, Outcome, Stopped, Surroundings
from batchkit.slicing.protecting import Protecting
from batchkit.stopping import Deadline
from batchkit.store import ChunkTransaction, HeldConnection, KeptSession

_logger = logging.getLogger("batchkit")

#: How long a chunk may hold the only write lock.
_ONE_WRITER_SECONDS = 0.2
#: How much the last chunk counts in the rate that is shown.
_RATE_WEIGHT = 0.3
#: How much of what a chunk was expected to take is expected of the next one.
_EXPECTED_DECAY = 0.95
#: How often in a lease the CPU time is read.
_CPU_READS = 20
#: How many leases long a transaction that must not be stopped may wait for its function.
_PROTECTED_IDLE_LEASES = 10


class Course:
    """
    Where a slice is.

    `lease` is replaced at each commit; all else that changes, changes by the methods here.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        job: Definition,
        around: Surroundings,
        timer: LeaseTimer,
        cutter: Cutter,
        caution: Caution,
        held: HeldConnection,
        slice_time: float | None,
    ) -> None:
        self.lease = lease
        self.job = job
        self.around = around
        self.timer = timer
        self.cutter = cutter
        self.caution = caution
        self.held = held
        self.isolation = Isolation(job, around.store, _sizing(lease, job, around))
        self.deadline = Deadline(slice_time)
        #: how many chunks this slice has committed
        self.chunks = 0
        #: items per second, as it is shown
        self.rate = 0.0
        #: what the item looked like that made the run fail
        self.failing_item: str | None = None
        self.protecting = Protecting(
            around.store,
            cutter,
            around.tie,
            lambda: self.lease,
            working=around.working if job.options.interruptible else None,
        )
        self._items = 0
        # What must not be stopped may wait long for others, and its connection must not be ended for that.
        self._idle = lease.seconds * (1 if job.options.interruptible else _PROTECTED_IDLE_LEASES)
        self._cpu, self._cpu_read_at = time.process_time(), time.perf_counter()
        self._chunk_began = self._cost_began = time.perf_counter()
        self._waited = 0.0
        self._after_commit: Sequence[Callable[[], object]] = ()
        self._began_at = time.time()
        self._checkpointed_at = time.perf_counter()

    # Whether to go on

    def check_goes_on(self) -> None:
        """
        Go on only if nothing is against it.

        Raises:
            Stopped: the worker should stop, or be free to be stopped for a while.
            LeaseLost: the timer has found the lease to be over.
        """
        if self.around.stop.requested:
            raise Stopped
        if self.around.breaks.has_begun_since(self._began_at) and self.is_protected:
            raise Stopped("max_protect is over, and the worker free to be stopped for a while")
        if self.timer.is_lost:
            raise self.lease_lost()

    @property
    def goes_on_at_once(self) -> bool:
        """Whether, as far as is known, the next chunk begins as soon as this one is committed."""
        options = self.job.options
        waits = options.throttle is not None or options.delivery not in (None, EXACTLY_ONCE) or bool(self._after_commit)
        return not (waits or self.should_stop())

    @property
    def is_protected(self) -> bool:
        """Whether the worker must not be stopped while it works the next chunk, or nobody knows."""
        options, around = self.job.options, self.around
        return not is_interruptible(
            is_protected=not options.interruptible, remaining=self.lease.chunk_seconds, working=around.working
        )

    def should_stop(self) -> bool:
        """Whether the function should return soon."""
        return self.around.stop.requested or self.timer.is_lost or self.deadline.has_passed

    def rest(self, seconds: float) -> bool:
        """Wait while no chunk is open; True when the slice should stop."""
        self.timer.rests()
        return self.around.stop.wait(seconds) or self.around.stop.requested

    def lease_lost(self) -> LeaseLost:
        """Make the error for a lease that is over."""
        return LeaseLost(self.lease.run_id, partition=self.lease.number, fence=self.lease.fence)

    # A chunk

    def begin_chunk(self) -> None:
        """Let the time of a chunk begin; it may be cut short from now on."""
        self.timer.chunk_begins()
        self.cutter.chunk_begins()
        self._after_commit = ()
        self._chunk_began = self._cost_began = time.perf_counter()

    def begin_passing(self) -> None:
        """Let the time begin of a transaction that only records what is known, and is not cut short."""
        self.timer.chunk_begins()
        self._after_commit = ()

    def costs_from_now(self) -> None:
        """Let what went before count for the rate that is shown, and not for the size of chunks: it held no lock."""
        self._cost_began = time.perf_counter()

    def open(self, kept: KeptSession | None = None) -> ChunkTransaction:
        """Open the transaction of a chunk."""
        is_dry_run = self.lease.is_dry_run
        return ChunkTransaction(self.held, self.around.sessions, idle=self._idle, is_dry_run=is_dry_run, kept=kept)

    def undo(self, transaction: ChunkTransaction, error: BaseException) -> None:
        """Roll a chunk back; what was raised into it from outside may have left the connection in the middle."""
        self.cutter.chunk_ends()
        if isinstance(error, Exception) and not self.around.stop.is_interruption(error):
            transaction.rollback()
            return
        self.held.discard(is_cut=True)
        # A cursor in one of its frames, or in a cycle, keeps even a closed SQLite connection alive, with its lock.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        with suppress(Exception):
            transaction.rollback()

    def chunk_took(self) -> float:
        """Say how long the chunk has taken by now, in seconds."""
        return time.perf_counter() - self._chunk_began

    def has_waited(self, seconds: float) -> None:
        """Take note that the next chunk has waited for its rate: that is no cost of its items."""
        self._waited = seconds

    def measured(self, items: int) -> float:
        """Take note of what the chunk has done by now, and give the rate that is shown."""
        rate = items / max(time.perf_counter() - self._chunk_began + self._waited, 1e-6)
        self.rate = rate if not self.rate else self.rate + _RATE_WEIGHT * (rate - self.rate)
        return self.rate

    def chunk_seconds(self) -> float:
        """
        Say how long the next chunk is expected to take, at most.

        That is how long this one took since the last checkpoint, waits included, or what longer ones before it took,
        which counts less with each: half as much after fourteen.
        """
        took = time.perf_counter() - self._checkpointed_at
        return max(took, (self.lease.chunk_seconds or 0.0) * _EXPECTED_DECAY)

    def calls_after_commit(self, calls: Sequence[Callable[[], object]]) -> None:
        """Keep what the function wants called once the chunk is known to be committed."""
        self._after_commit = calls

    # The lease

    def goes_by(self, lease: Lease) -> None:
        """Go on by a lease of which something else than its position has changed."""
        self.lease = lease

    def moved_on(self, lease: Lease) -> None:
        """Go on by a lease whose chunk is committed."""
        items = lease.done + lease.failed - self.lease.done - self.lease.failed
        self.isolation.moved_on(items, time.perf_counter() - self._cost_began)
        self._items += lease.done - self.lease.done
        self.chunks += 1
        self.marked(lease)
        self.around.watch(lease)
        self._call_after_commit()

    def marked(self, lease: Lease) -> None:
        """Go on by a lease whose checkpoint is committed, with no item done by it."""
        self.lease = lease
        self._checkpointed_at = time.perf_counter()
        if self._checkpointed_at - self._cpu_read_at > lease.seconds / _CPU_READS:
            # Not each time: with several threads the system takes long to sum them up.
            self._cpu, self._cpu_read_at = time.process_time(), self._checkpointed_at
        self.timer.checkpointed()
        self.around.tie.moved_on(lease.chunk_seconds)

    def may_be_idle_longer(self) -> None:
        """Give the next transactions more time in which nothing is asked of the database."""
        self._idle = min(self._idle * 2, self.job.options.chunk_timeout)

    @property
    def was_working(self) -> bool:
        """Whether this process has worked since about its last checkpoint: one that was stopped used no CPU time."""
        return time.process_time() - self._cpu > self.lease.seconds / 2

    # Its end

    def too_many(self, refused: Refused) -> BaseException:
        """Give the error that the run fails with: where no failures are allowed, it is that of the item."""
        self.failing_item = refused.item
        if not self.job.options.max_failures:
            return refused.cause
        refused.error.__cause__ = refused.cause
        return refused.error

    def outcome(self, ending: Ending, error: BaseException | None = None) -> Outcome:
        """Say what came of the slice."""
        return Outcome(ending, chunks=self.chunks, items=self._items, error=error)

    def quietly(self, step: Callable[[], object]) -> None:
        """Do what is not worth an error: where it cannot be done, the lease runs out by itself, and time is lost."""
        try:
            step()
        except Exception:
            _logger.warning("a lease was left to run out", extra={"run_id": self.lease.run_id}, exc_info=True)

    def _call_after_commit(self) -> None:
        calls, self._after_commit = self._after_commit, ()
        for call in calls:
            try:
                call()
            except Exception:
                _logger.exception("what was to be called after a commit failed", extra={"run_id": self.lease.run_id})


def _sizing(lease: Lease, job: Definition, around: Surroundings) -> Sizing:
    throttle = job.options.throttle
    wanted = job.options.chunk_size if throttle is None else throttle.capped(job.options.chunk_size)
    if isinstance(wanted, int):
        return FixedSizing(wanted)
    longest = [lease.seconds / 3]
    if around.grace is not None:
        longest.append(around.grace / 3)
    if around.store.database.dialect.has_one_writer:
        longest.append(_ONE_WRITER_SECONDS)
    return AdaptiveSizing(wanted, longest=min(longest), first=lease.chunk_size)
