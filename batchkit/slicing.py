"""One slice: working the chunks of a claimed partition until it ends or should stop."""

from __future__ import annotations

import enum
import gc
import logging
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar, cast

from batchkit.chunk import Chunk, Finish, at_hand
from batchkit.cutting import ChunkCut, Cutter
from batchkit.describing import describe, safe_text
from batchkit.each import work_each
from batchkit.errors import (
    BatchkitError,
    ChunkTorn,
    DatabaseUnavailable,
    FailureResolved,
    InvalidParams,
    LeaseLost,
    SourceChanged,
    WriteInsideChunk,
)
from batchkit.isolation import ChunkFailed, Failed, FetchFailed, Isolation, Read, Refused
from batchkit.job import Definition
from batchkit.lease_timer import LeaseTimer
from batchkit.model import Checkpoint, Lease, Position, Standing
from batchkit.planning import (
    Cursors,
    bounded,
    check_fingerprint,
    check_identity,
    fingerprint_of,
    identity_of,
    make_source,
    plan,
    prefetch_items,
    read_items,
)
from batchkit.replaying import FailedItems
from batchkit.retrying import StoppedWaiting, retry_by
from batchkit.sizing import AdaptiveSizing, FixedSizing, Sizing
from batchkit.sources.base import NotFetched, Prefetching, Source, Watched
from batchkit.states import PartitionKind
from batchkit.stopping import Deadline, Stopping
from batchkit.store import ChunkTransaction, HeldConnection, Sessions, Store
from batchkit.store.dialects import Fault
from batchkit.values import dumps, loads

R = TypeVar("R")

_logger = logging.getLogger("batchkit")

_TRIES = 5
_FIRST_BACKOFF_SECONDS = 0.05
_DECLINE_SECONDS = 30.0
_RECONNECT_SECONDS = 0.2
_EMPTY_SLICE_DELAY_SECONDS = 1.0
#: How long a chunk may hold the only write lock.
_ONE_WRITER_SECONDS = 0.2
#: How much the last chunk counts in the rate that is shown.
_RATE_WEIGHT = 0.3


class Ending(enum.Enum):
    """How a slice ended."""

    #: nothing is left in the partition
    EXHAUSTED = "exhausted"
    #: infrastructure stopped it, or its time was up; the run goes on by itself
    INTERRUPTED = "interrupted"
    #: the run was paused, cancelled, or failed in another partition
    REQUESTED = "requested"
    #: an error stopped the run
    FAILED = "failed"
    #: the lease was over; what was not committed was rolled back
    LOST = "lost"
    #: this worker's code does not fit the run; it was left to others
    DECLINED = "declined"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a slice."""

    ending: Ending
    chunks: int
    items: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all slices of a worker share."""

    store: Store
    sessions: Sessions
    worker: str
    stop: Stopping
    #: called after each commit with the lease as it is then
    watch: Callable[[Lease], None]
    #: seconds between the signal to stop and the kill, where that is known
    grace: float | None = None


def work_slice(lease: Lease, *, job: Definition, around: Surroundings, slice_time: float | None) -> Outcome:
    """
    Work a claimed partition until it is exhausted or has to stop, and give it back.

    Whatever happens, a chunk is committed together with its checkpoint or not at all. Errors of the job make the run
    failed; a lost lease or database leaves it to whoever claims it next. Only what is no Exception passes through,
    after the lease was given back.
    """
    timer = LeaseTimer(around.store.leases, lease, chunk_timeout=job.options.chunk_timeout)
    cutter = Cutter(around.stop, grace=around.grace)
    held = HeldConnection(around.store.database, lease.run_id)
    with timer, cutter:
        slice_ = _Slice(lease, job=job, around=around, timer=timer, cutter=cutter, held=held, slice_time=slice_time)
        try:
            return slice_.work()
        finally:
            held.close()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the chunks of a slice are read from."""

    source: Source[Any]
    cursors: Cursors
    params: dict[str, object]
    # Asked once a slice, since a check against a protocol takes long.
    is_prefetching: bool
    watched: Watched | None

    def place_of(self, cursor: object) -> str:
        """Give the place of an item in the job's own source, as JSON text."""
        if isinstance(self.source, FailedItems):
            return self.source.place_of(cast("int", cursor))
        return self.cursors.write(cursor)


class _Slice:
    def __init__(
        self,
        lease: Lease,
        *,
        job: Definition,
        around: Surroundings,
        timer: LeaseTimer,
        cutter: Cutter,
        held: HeldConnection,
        slice_time: float | None,
    ) -> None:
        self._lease = lease
        self._job = job
        self._around = around
        self._timer = timer
        self._cutter = cutter
        self._held = held
        self._deadline = Deadline(slice_time)
        self._chunks = 0
        self._items = 0
        self._rate = 0.0
        self._is_empty = False
        self._idle = lease.seconds
        self._cpu_at_checkpoint = time.process_time()
        self._isolation = Isolation(job, around.store, _sizing(lease, job, around))
        self._chunk_began = time.perf_counter()
        #: what the function wants called once the chunk in flight is known to be committed
        self._after_commit: Sequence[Callable[[], object]] = ()
        self._has_warned_of_key = False
        #: what the item looked like that made the run fail
        self._failing_item: str | None = None

    def work(self) -> Outcome:
        try:
            return self._work()
        except LeaseLost as error:
            return self._lost(error)
        except FetchFailed as failed:
            return self._end_after(failed.error)
        except ChunkCut as error:
            self._give_back(error)
            return self._outcome(Ending.INTERRUPTED, error)
        except BaseException as error:  # the user's function may raise anything
            if isinstance(error, Exception) and not self._around.stop.is_interruption(error):
                return self._end_after(error)
            self._give_back(error)
            raise

    def _work(self) -> Outcome:
        if self._lease.kind is PartitionKind.FINISH:
            return self._with_faults(self._finish)
        source, params = self._prepare()
        is_prefetching, watched = isinstance(source, Prefetching), source if isinstance(source, Watched) else None
        return self._work_chunks(_Reading(source, Cursors(source), params, is_prefetching, watched))

    def _end_after(self, error: Exception) -> Outcome:
        """Give the partition back as *error* asks for; whatever goes wrong with that is for the lease to settle."""
        try:
            if isinstance(error, _Declined):
                return self._decline(error)
            if isinstance(error, _Stopped):
                return self._interrupt(str(self._around.stop.reason))
            if self._is_away(error):
                self._held.discard()
                return self._interrupt("the database was away, or its lock was not to be had")
            return self._fail(error)
        except LeaseLost as lost:
            return self._lost(lost)
        except Exception as failed:
            if self._around.store.database.fault(failed) is None:
                raise
            _logger.warning("a lease was left to run out", extra={"run_id": self._lease.run_id}, exc_info=True)
            return self._outcome(Ending.INTERRUPTED, error)

    # The items

    def _prepare(self) -> tuple[Source[Any], dict[str, object]]:
        try:
            params = self._job.params(self._lease.params)
        except InvalidParams as error:
            raise _Declined(error) from error
        source = make_source(self._job, params)
        if self._lease.failures_of is not None:
            source = self._failed_items(source)
        if not self._lease.is_planned:
            self._with_retries(lambda: self._plan(source))
        if self._lease.identity is None:
            self._accept(source)
        self._with_retries(lambda: self._check(source))
        return bounded(source, self._lease), params

    def _check(self, source: Source[Any]) -> None:
        with self._blaming_others():
            try:
                check_identity(self._job, source, self._lease)
            except SourceChanged as error:
                raise _Declined(error) from error
            check_fingerprint(source, self._lease)

    def _failed_items(self, source: Source[Any]) -> Source[Any]:
        failed = FailedItems(source, self._around.store, self._lease, version=self._job.options.version)
        try:
            failed.check()
        except SourceChanged as error:
            raise _Declined(error) from error
        return failed

    def _accept(self, source: Source[Any]) -> None:
        """Go on with what this code gives, since a person has said that the cursor means the same there."""
        identity, fingerprint = identity_of(source, version=self._job.options.version), fingerprint_of(source)
        self._lease = self._around.store.leases.accept(self._lease, identity=identity, fingerprint=fingerprint)

    def _plan(self, source: Source[Any]) -> None:
        self._prefetch(source, Cursors(source))
        transaction = self._open()
        try:
            planned = plan(self._job, source, transaction.session, self._lease)
        finally:
            transaction.rollback()
        self._lease = self._around.store.leases.plan(self._lease, planned)
        self._is_empty = not planned.ranges

    def _work_chunks(self, reading: _Reading) -> Outcome:
        while not self._is_empty:
            standing = self._next(reading)
            if standing is None:
                break
            if not standing.goes_on:
                return self._yield_to(standing)
            if self._deadline.has_passed:
                return self._interrupt("its slice time is over")
        self._around.store.leases.release(self._lease, is_exhausted=True, reason="every item is done")
        return self._outcome(Ending.EXHAUSTED)

    def _next(self, reading: _Reading) -> Standing | None:
        """Commit the next chunk, or move past the next item that fails, once it is found; None where none is left."""
        while True:
            if self._around.stop.requested:
                raise _Stopped
            if self._timer.is_lost:
                raise self._lease_lost()
            try:
                return self._with_retries(lambda: self._chunk(reading))
            except ChunkFailed as failed:
                if self._isolation.is_found(failed) and failed.item is not None:
                    return self._with_faults(partial(self._pass, failed.item, failed))
            except Refused as refused:
                if not refused.index:
                    raise self._too_many(refused) from None
                # Those before it are good.
                self._isolation.stop_before(refused.index)

    def _chunk(self, reading: _Reading) -> Standing | None:
        """Work the next chunk; None where there is none."""
        self._timer.chunk_begins()
        self._cutter.chunk_begins()
        self._after_commit = ()
        began = time.perf_counter()
        transaction, read = self._begin(reading)
        try:
            if not read.pairs:
                self._cutter.chunk_ends()
                transaction.rollback()
                return None
            self._isolation.begin()
            # Before the work: a cursor that cannot be stored is no fault of an item.
            cursor = read.last
            chunk = self._make_chunk(reading, read, transaction)
            with self._blaming_items(read):
                self._call(chunk, reading.params)
                transaction.flush()
            self._warn_of_moved_key(reading)
            self._after_commit = chunk.committed_calls
            self._cutter.chunk_ends()
            done = len(chunk) - len(chunk.failed)
            failed = self._isolation.failed_in(chunk, read)
            transaction.keep_nothing_of_dry_run()
            self._isolation.record(transaction, self._lease, failed, done=done)
            self._isolation.resolve(transaction, chunk, read)
            checkpoint = self._checkpoint(cursor, chunk, seconds=time.perf_counter() - began)
            moved, standing = transaction.checkpoint(self._around.store.leases, self._lease, checkpoint)
            with self._blaming_items(read):
                transaction.commit()
        except BaseException as error:
            self._undo(transaction, error)
            raise
        self._moved_on(moved)
        return standing

    def _call(self, chunk: Chunk[Any], params: Mapping[str, object]) -> None:
        with at_hand(chunk):
            if not self._job.is_each:
                self._job.function(chunk, **params)
                return
            is_apart = self._isolation.is_apart
            work_each(self._job.function, chunk, params, is_apart=is_apart, is_of_chunk=self._is_of_chunk)

    def _is_of_chunk(self, error: Exception) -> bool:
        """Tell whether an error is no fault of an item, and the chunk is to be tried again or given up whole."""
        if isinstance(error, LeaseLost | ChunkTorn | WriteInsideChunk) or self._around.stop.is_interruption(error):
            return True
        return self._fault(error) is not None or self._is_ours(error)

    def _begin(self, reading: _Reading) -> tuple[ChunkTransaction, Read]:
        """Open the transaction of the next chunk and read its items, once what that takes is fetched."""
        while True:
            if reading.is_prefetching:
                self._prefetch(reading.source, reading.cursors)
            # The size of chunks follows from what holds locks; the fetching counts for the rate only.
            self._chunk_began = time.perf_counter()
            transaction = self._open()
            try:
                return transaction, self._read(reading, transaction)
            except NotFetched:
                transaction.rollback()
            except BaseException as error:
                self._undo(transaction, error)
                raise
            if self._around.stop.requested:
                raise _Stopped

    def _prefetch(self, source: object, cursors: Cursors) -> None:
        """Let the source ask others before anything is locked."""
        if isinstance(source, Prefetching):
            with self._blaming_others():
                after = cursors.read(self._lease.cursor)
                prefetch_items(source, after, limit=self._isolation.limit, lease=self._lease)

    @contextmanager
    def _blaming_others(self) -> Iterator[None]:
        """Say of an error that no item is at fault, but what the source asks."""
        try:
            yield
        except (BatchkitError, _Declined):
            raise
        except Exception as error:
            if self._around.stop.is_interruption(error) or self._fault(error) is not None:
                raise
            raise FetchFailed(error) from error

    def _warn_of_moved_key(self, reading: _Reading) -> None:
        moved = None if reading.watched is None or self._has_warned_of_key else reading.watched.moved()
        if moved is not None:
            self._has_warned_of_key = True
            _logger.warning(
                "a function changes the key that its items are walked by, so items may be done twice or not at all",
                extra={"run_id": self._lease.run_id, "job": self._job.name, "key": moved},
            )

    def _read(self, reading: _Reading, transaction: ChunkTransaction) -> Read:
        after = reading.cursors.read(self._lease.cursor)
        limit, session = self._isolation.limit, transaction.session
        pairs = read_items(reading.source, after, limit=limit, session=session, lease=self._lease)
        return Read(pairs, reading.cursors, self._lease)

    @contextmanager
    def _blaming_items(self, read: Read) -> Iterator[None]:
        """Say of an error that the items of the chunk may be at fault, one of them or all together."""
        try:
            yield
        except (LeaseLost, ChunkTorn, WriteInsideChunk):
            raise
        except Exception as error:
            is_database_gone = self._fault(error) in {Fault.LOST, Fault.READ_ONLY} or self._is_ours(error)
            if is_database_gone or self._around.stop.is_interruption(error):
                raise
            raise self._isolation.failed(error, read) from error

    def _pass(self, failed: Failed, refused: ChunkFailed) -> Standing:
        """
        Move past the one item that fails, and record it in the same transaction.

        Raises:
            TooManyFailures: the job does not allow so many; where it allows none, what the item has raised.
        """
        self._timer.chunk_begins()
        self._after_commit = ()
        transaction = self._open()
        try:
            self._isolation.record(transaction, self._lease, [failed], done=0)
            checkpoint = Checkpoint(
                cursor=failed.item.cursor, done=0, failed=1, carry=self._lease.carry, chunk_size=1, rate=self._rate
            )
            moved, standing = transaction.checkpoint(self._around.store.leases, self._lease, checkpoint)
            transaction.commit()
        except Refused as too_many:
            transaction.rollback()
            too_many.cause.with_traceback(refused.traceback)
            raise self._too_many(too_many) from None
        except BaseException as raised:
            self._undo(transaction, raised)
            raise
        self._moved_on(moved)
        self._isolation.passed()
        return standing

    def _too_many(self, refused: Refused) -> BaseException:
        """Give the error that the run fails with: where no failures are allowed, it is that of the item."""
        self._failing_item = refused.item
        if not self._job.options.max_failures:
            return refused.cause
        refused.error.__cause__ = refused.cause
        return refused.error

    def _undo(self, transaction: ChunkTransaction, error: BaseException) -> None:
        """Roll the chunk back; what was raised into it from outside may have left the connection in the middle."""
        self._cutter.chunk_ends()
        if isinstance(error, Exception) and not self._around.stop.is_interruption(error):
            transaction.rollback()
            return
        self._held.discard(is_cut=True)
        # A cursor in one of its frames, or in a cycle, keeps even a closed SQLite connection alive, with its lock.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        with suppress(Exception):
            transaction.rollback()

    def _make_chunk(self, reading: _Reading, read: Read, transaction: ChunkTransaction) -> Chunk[Any]:
        return Chunk(
            read.items,
            transaction=transaction,
            run_id=self._lease.run_id,
            partition=self._lease.number,
            number=self._lease.seq + 1,
            attempt=self._isolation.tries,
            carry=_read_carry(self._lease.carry),
            stopping=self._should_stop,
            keys=lambda index: self._key(reading, read, index),
            protecting=self._cutter.protected,
            is_dry_run=self._lease.is_dry_run,
        )

    def _key(self, reading: _Reading, read: Read, index: int) -> str:
        """Name an item to other systems: by the run in which it is done, and by its place in the source."""
        place = reading.place_of(read.pairs[index][1])
        return f"{self._lease.failures_of or self._lease.run_id}-{blake2b(place.encode(), digest_size=10).hexdigest()}"

    def _checkpoint(self, cursor: str, chunk: Chunk[Any], *, seconds: float) -> Checkpoint:
        rate = len(chunk) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else self._rate + _RATE_WEIGHT * (rate - self._rate)
        return Checkpoint(
            cursor=cursor,
            done=len(chunk) - len(chunk.failed),
            failed=len(chunk.failed),
            carry=dumps(chunk.carry, where="chunk.carry") if chunk.carry else "{}",
            chunk_size=len(chunk),
            rate=self._rate,
        )

    def _moved_on(self, lease: Lease) -> None:
        items = lease.done + lease.failed - self._lease.done - self._lease.failed
        self._isolation.moved_on(items, time.perf_counter() - self._chunk_began)
        self._items += lease.done - self._lease.done
        self._chunks += 1
        self._lease = lease
        self._cpu_at_checkpoint = time.process_time()
        self._timer.checkpointed()
        self._around.watch(lease)
        self._call_after_commit()

    def _call_after_commit(self) -> None:
        calls, self._after_commit = self._after_commit, ()
        for call in calls:
            try:
                call()
            except Exception:
                _logger.exception("what was to be called after a commit failed", extra={"run_id": self._lease.run_id})

    # The end of the run

    def _finish(self) -> Outcome:
        try:
            params = self._job.params(self._lease.params)
        except InvalidParams as error:
            raise _Declined(error) from error
        if self._job.finish is None:
            raise _Declined(
                BatchkitError(
                    f"job {self._job.name} has no finish function in this worker, but run {self._lease.run_id} began "
                    f"with one; deploy the code that it began with"
                )
            )
        leases = self._around.store.leases
        self._cutter.chunk_begins()
        transaction = self._open()
        try:
            rows = leases.carries(transaction.store_connection(), self._lease)
            finish = Finish(
                transaction=transaction,
                run_id=self._lease.run_id,
                done=sum(done for _, done, _ in rows),
                failed=sum(failed for _, _, failed in rows),
                carries=[_read_carry(carry) for carry, _, _ in rows],
                is_dry_run=self._lease.is_dry_run,
            )
            result = dumps(self._job.finish(finish, **params), where="what finish returned")
            transaction.flush()
            self._cutter.chunk_ends()
            transaction.keep_nothing_of_dry_run()
            ended = leases.finish(
                transaction.store_connection(), self._lease, result=result, worker=self._around.worker
            )
            if ended is None:
                transaction.commit()
        except BaseException as error:
            self._undo(transaction, error)
            raise
        if ended is not None:
            transaction.rollback()
            return self._yield_to(ended)
        return self._outcome(Ending.EXHAUSTED)

    # Faults of the database

    def _with_faults(self, step: Callable[[], R]) -> R:
        """Do *step* again after a fault that may pass; after a lost connection, find out first what was committed."""
        for attempt in range(1, _TRIES + 1):
            try:
                return step()
            except LeaseLost:
                self._adopt_position()
            except Exception as raised:
                error = raised.error if isinstance(raised, ChunkFailed) else raised
                fault = Fault.TRANSIENT if isinstance(error, FailureResolved) else self._fault(error)
                if fault not in (Fault.LOST, Fault.TRANSIENT) or attempt == _TRIES:
                    raise
                self._note_retry(error, attempt)
                if fault is Fault.TRANSIENT:
                    self._isolation.contended()
                if fault is Fault.LOST:
                    self._held.discard()
                    # Idle too long inside the transaction ends the connection as well; each time it may take longer.
                    self._idle = min(self._idle * 2, self._job.options.chunk_timeout)
                    self._adopt_position()
                if self._rest(random.uniform(0.5, 1.0) * _FIRST_BACKOFF_SECONDS * 2**attempt):  # noqa: S311
                    raise _Stopped from error
        raise self._lease_lost()

    def _with_retries(self, step: Callable[[], R]) -> R:
        """Do *step* again as the job's own policy says, too; not while an item that fails is being looked for."""
        policy = self._job.options.retry
        if policy is None:
            return self._with_faults(step)
        is_searching = self._isolation.is_searching
        failed: ChunkFailed | FetchFailed | None = None

        def attempt() -> R:
            nonlocal failed
            try:
                return self._with_faults(step)
            except (ChunkFailed, FetchFailed) as error:
                failed = error
                raise error.error from None

        def is_judged(error: BaseException) -> bool:
            is_of_items = isinstance(failed, ChunkFailed)
            return failed is not None and error is failed.error and not (is_of_items and is_searching)

        try:
            return retry_by(policy, attempt, is_judged=is_judged, wait=self._rest, on_retry=self._note_retry)
        except StoppedWaiting as error:
            raise _Stopped from error
        except Exception as error:
            if failed is not None and error is failed.error:
                raise failed from error
            raise

    def _note_retry(self, error: BaseException, attempt: int) -> None:
        extra = {"run_id": self._lease.run_id, "attempt": attempt}
        _logger.warning("a chunk is tried again", extra=extra, exc_info=error)
        reason = f"attempt {attempt} behind the cursor {self._lease.cursor}: {type(error).__name__}: {safe_text(error)}"
        self._quietly(lambda: self._around.store.runs.count_retry(self._lease.run_id, reason))

    def _rest(self, seconds: float) -> bool:
        """Wait before trying again; True when the slice should stop."""
        self._timer.rests()
        return self._around.stop.wait(seconds) or self._around.stop.requested

    def _fault(self, error: Exception) -> Fault | None:
        """Say what *error* means for our own connection: the function may have lost one of its own, elsewhere."""
        fault = self._around.store.database.fault(error)
        if fault is Fault.LOST and not (self._held.is_lost or self._is_ours(error)):
            return None
        return fault

    def _is_away(self, error: Exception) -> bool:
        return self._fault(error) is Fault.LOST or self._is_ours(error)

    def _is_ours(self, error: Exception) -> bool:
        return isinstance(error, DatabaseUnavailable) and error.url == self._around.store.database.url

    def _adopt_position(self) -> None:
        """
        Go on from what the database says, after a commit whose reply was lost or a checkpoint that was refused.

        Raises:
            LeaseLost: the partition is not ours any more, or has not moved though its checkpoint was refused.
        """
        position = self._read_position()
        is_ours = position.fence == self._lease.fence and position.holder == self._lease.holder
        if not is_ours or not position.is_live:
            raise self._lease_lost()
        if position.seq > self._lease.seq:
            self._moved_on(
                replace(
                    self._lease,
                    seq=position.seq,
                    cursor=position.cursor,
                    done=position.done,
                    failed=position.failed,
                    carry=position.carry,
                )
            )

    def _read_position(self) -> Position:
        gives_up = Deadline(self._lease.seconds)
        while True:
            try:
                return self._around.store.leases.position(self._lease)
            except Exception as error:
                if self._around.store.database.fault(error) is None or gives_up.has_passed:
                    raise
            if self._around.stop.wait(_RECONNECT_SECONDS):
                raise self._lease_lost()

    # Endings

    def _interrupt(self, reason: str) -> Outcome:
        # One that did no chunk would come back at once, and again, if whatever stopped it still does.
        delay = 0.0 if self._chunks else _EMPTY_SLICE_DELAY_SECONDS
        self._around.store.leases.release(self._lease, reason=f"interrupted: {reason}", delay=delay)
        return self._outcome(Ending.INTERRUPTED)

    def _yield_to(self, standing: Standing) -> Outcome:
        reason = f"{standing.requested} requested" if standing.requested else f"the run is {standing.state}"
        self._around.store.leases.release(self._lease, reason=reason, is_interrupt=False)
        return self._outcome(Ending.REQUESTED)

    def _decline(self, declined: _Declined) -> Outcome:
        reason = safe_text(declined.error)
        self._around.store.leases.release(
            self._lease, reason="left to a worker whose code fits", delay=_DECLINE_SECONDS, is_interrupt=False
        )
        self._around.store.runs.explain_waiting(self._lease.run_id, reason)
        _logger.warning("a run does not fit this worker's code", extra={"run_id": self._lease.run_id, "reason": reason})
        return self._outcome(Ending.DECLINED, declined.error)

    def _fail(self, error: Exception) -> Outcome:
        described = describe(error, partition=self._lease.number, cursor=self._lease.cursor, item=self._failing_item)
        self._around.store.leases.fail(self._lease, described, worker=self._around.worker)
        _logger.error("a run failed", extra={"run_id": self._lease.run_id, "job": self._job.name}, exc_info=error)
        return self._outcome(Ending.FAILED, error)

    def _lost(self, error: LeaseLost) -> Outcome:
        _logger.warning("a lease was lost", extra={"run_id": self._lease.run_id, "fence": self._lease.fence})
        # A process that was stopped used no CPU time meanwhile. One that did was kept from renewing by its own code.
        was_working = time.process_time() - self._cpu_at_checkpoint > self._lease.seconds / 2
        if self._timer.is_stuck:
            reason = (
                f"a chunk behind the cursor {self._lease.cursor} took longer than chunk_timeout "
                f"({self._job.options.chunk_timeout:g} s), so its lease ran out and its work was undone; "
                f"make chunks smaller (chunk_size) or give them more time (chunk_timeout)"
            )
            self._quietly(lambda: self._around.store.runs.explain_waiting(self._lease.run_id, reason))
        elif was_working:
            self._quietly(lambda: self._around.store.leases.lengthen(self._lease))
        return self._outcome(Ending.LOST, error)

    def _give_back(self, error: BaseException) -> None:
        """Give the partition back after an error that was raised into the slice from outside."""
        self._held.discard()
        what = self._around.stop.reason or type(error).__name__
        reason = f"interrupted: {what}, the chunk was rolled back"
        self._quietly(lambda: self._around.store.leases.release(self._lease, reason=reason))

    def _quietly(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            # The lease runs out by itself, so nothing is lost but time.
            _logger.warning("a lease was left to run out", extra={"run_id": self._lease.run_id}, exc_info=True)

    def _open(self) -> ChunkTransaction:
        is_dry_run = self._lease.is_dry_run
        return ChunkTransaction(self._held, self._around.sessions, idle=self._idle, is_dry_run=is_dry_run)

    def _should_stop(self) -> bool:
        return self._around.stop.requested or self._timer.is_lost or self._deadline.has_passed

    def _lease_lost(self) -> LeaseLost:
        return LeaseLost(self._lease.run_id, partition=self._lease.number, fence=self._lease.fence)

    def _outcome(self, ending: Ending, error: BaseException | None = None) -> Outcome:
        return Outcome(ending, chunks=self._chunks, items=self._items, error=error)


class _Stopped(Exception):
    pass


class _Declined(Exception):
    def __init__(self, error: BatchkitError) -> None:
        self.error = error


def _sizing(lease: Lease, job: Definition, around: Surroundings) -> Sizing:
    wanted = job.options.chunk_size
    if isinstance(wanted, int):
        return FixedSizing(wanted)
    longest = [lease.seconds / 3]
    if around.grace is not None:
        longest.append(around.grace / 3)
    if around.store.database.dialect.has_one_writer:
        longest.append(_ONE_WRITER_SECONDS)
    return AdaptiveSizing(wanted, longest=min(longest), first=lease.chunk_size)


def _read_carry(text: str) -> dict[str, object]:
    return cast("dict[str, object]", loads(text)) if text != "{}" else {}
