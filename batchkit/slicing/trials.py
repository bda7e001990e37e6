"""Trying a step of a slice again: after faults of the database in any case, else as the job's own policy says."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from batchkit.describing import safe_text
from batchkit.errors import (
    BatchkitError,
    ChunkTorn,
    DatabaseUnavailable,
    FailureResolved,
    LeaseLost,
    OutputUnusable,
    ResultCutOff,
    WriteInsideChunk,
)
from batchkit.isolation import ChunkFailed, FetchFailed, Read
from batchkit.model import Position
from batchkit.retrying import StoppedWaiting, retry_by
from batchkit.slicing.course import Course
from batchkit.slicing.outcome import Declined, Stopped
from batchkit.stopping import Deadline
from batchkit.store.dialects import Fault

R = TypeVar("R")

_logger = logging.getLogger("batchkit")

_TRIES = 5
_FIRST_BACKOFF_SECONDS = 0.05
_RECONNECT_SECONDS = 0.2
#: Errors that are the fault of no item: halving the chunk would not find any.
_OF_CHUNK = (LeaseLost, ChunkTorn, OutputUnusable, ResultCutOff, WriteInsideChunk)


class Trials:
    """Does the steps of one slice, as often as it takes or may be."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def with_faults(self, step: Callable[[], R]) -> R:
        """
        Do *step* again after a fault that may pass; after a lost connection, find out first what was committed.

        Raises:
            Stopped: the worker should stop, and does not wait for the fault to pass.
            LeaseLost: the lease is over.
            Exception: what the last try has raised.
        """
        course = self._course
        for attempt in range(1, _TRIES + 1):
            try:
                return step()
            except LeaseLost:
                self.adopt_position()
            except Exception as raised:
                error = raised.error if isinstance(raised, ChunkFailed) else raised
                fault = Fault.TRANSIENT if isinstance(error, FailureResolved) else self.fault(error)
                if fault not in (Fault.LOST, Fault.TRANSIENT) or attempt == _TRIES:
                    raise
                self._note(error, attempt)
                if fault is Fault.TRANSIENT:
                    course.isolation.contended()
                if fault is Fault.LOST:
                    course.held.discard()
                    # Idle too long inside the transaction ends the connection as well; each time it may take longer.
                    course.may_be_idle_longer()
                    self.adopt_position()
                if course.rest(random.uniform(0.5, 1.0) * _FIRST_BACKOFF_SECONDS * 2**attempt):  # noqa: S311
                    raise Stopped from error
        raise course.lease_lost()

    def with_retries(self, step: Callable[[], R]) -> R:
        """
        Do *step* again as the job's own policy says, too; not while an item that fails is being looked for.

        Raises:
            ChunkFailed: the function, or the database, has refused what was to be done.
            FetchFailed: what the source asks has refused it.
            Stopped, LeaseLost, Exception: as `with_faults`.
        """
        policy = self._course.job.options.retry
        if policy is None:
            return self.with_faults(step)
        is_searching = self._course.isolation.is_searching
        failed: ChunkFailed | FetchFailed | None = None

        def attempt() -> R:
            nonlocal failed
            try:
                return self.with_faults(step)
            except (ChunkFailed, FetchFailed) as error:
                failed = error
                raise error.error from None

        def is_judged(error: BaseException) -> bool:
            is_of_items = isinstance(failed, ChunkFailed)
            return failed is not None and error is failed.error and not (is_of_items and is_searching)

        try:
            return retry_by(policy, attempt, is_judged=is_judged, wait=self._course.rest, on_retry=self._note)
        except StoppedWaiting as error:
            raise Stopped from error
        except Exception as error:
            if failed is not None and error is failed.error:
                raise failed from error
            raise

    # What an error means

    @contextmanager
    def blaming_items(self, read: Read | None) -> Iterator[None]:
        """Say of an error that the items that were read may be at fault, one of them or all together; or the step."""
        try:
            yield
        except _OF_CHUNK:
            raise
        except Exception as error:
            is_database_gone = self.fault(error) in {Fault.LOST, Fault.READ_ONLY} or self._is_unavailable(error)
            if is_database_gone or self.is_interruption(error):
                raise
            raise (ChunkFailed(error, 1) if read is None else self._course.isolation.failed(error, read)) from error

    @contextmanager
    def blaming_others(self) -> Iterator[None]:
        """Say of an error that no item is at fault, but what the source asks."""
        try:
            yield
        except (BatchkitError, Declined):
            raise
        except Exception as error:
            if self.is_interruption(error) or self.fault(error) is not None:
                raise
            raise FetchFailed(error) from error

    def is_of_chunk(self, error: Exception) -> bool:
        """Tell whether an error is no fault of an item, and the chunk is to be tried again or given up whole."""
        return isinstance(error, _OF_CHUNK) or self.is_interruption(error) or self.is_of_database(error)

    def is_of_database(self, error: Exception) -> bool:
        """Tell whether an error is one of the database that the slice writes to."""
        return self.fault(error) is not None or self._is_unavailable(error)

    def is_away(self, error: Exception) -> bool:
        """Tell whether that database is away, or the connection to it lost."""
        return self.fault(error) is Fault.LOST or self._is_unavailable(error)

    def is_interruption(self, error: BaseException) -> bool:
        """Tell whether an error was raised into the slice to stop it."""
        return self._course.around.stop.is_interruption(error)

    def fault(self, error: Exception) -> Fault | None:
        """Say what *error* means for our own connection: the function may have lost one of its own, elsewhere."""
        fault = self._course.around.store.database.fault(error)
        if fault is Fault.LOST and not (self._course.held.is_lost or self._is_unavailable(error)):
            return None
        return fault

    def _is_unavailable(self, error: Exception) -> bool:
        return isinstance(error, DatabaseUnavailable) and error.url == self._course.around.store.database.url

    # Where the partition is

    def adopt_position(self) -> None:
        """
        Go on from what the database says, after a commit whose reply was lost or a checkpoint that was refused.

        Raises:
            LeaseLost: the partition is not ours any more, or has not moved though its checkpoint was refused.
        """
        position, lease = self._read_position(), self._course.lease
        is_ours = position.fence == lease.fence and position.holder == lease.holder
        if not is_ours or not position.is_live:
            raise self._course.lease_lost()
        if position.seq <= lease.seq:
            return
        moved = replace(
            lease,
            seq=position.seq,
            cursor=position.cursor,
            done=position.done,
            failed=position.failed,
            carry=position.carry,
            doubt=position.doubt,
            in_doubt=position.in_doubt,
        )
        if moved.doubt is None:
            self._course.moved_on(moved)
        else:
            self._course.marked(moved)

    def _read_position(self) -> Position:
        course = self._course
        gives_up = Deadline(course.lease.seconds)
        while True:
            try:
                return course.around.store.leases.position(course.lease)
            except Exception as error:
                if course.around.store.database.fault(error) is None or gives_up.has_passed:
                    raise
            if course.around.stop.wait(_RECONNECT_SECONDS):
                raise course.lease_lost()

    def _note(self, error: BaseException, attempt: int) -> None:
        lease, runs = self._course.lease, self._course.around.store.runs
        extra = {"run_id": lease.run_id, "attempt": attempt}
        _logger.warning("a chunk is tried again", extra=extra, exc_info=error)
        reason = f"attempt {attempt} behind the cursor {lease.cursor}: {type(error).__name__}: {safe_text(error)}"
        self._course.quietly(lambda: runs.count_retry(lease.run_id, reason))
