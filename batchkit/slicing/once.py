"""Working chunks at most once: each is marked as in doubt before the function is called, and that only once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from batchkit.chunk import Chunk
from batchkit.doubts import after_of
from batchkit.isolation import Failed, Read, Refused
from batchkit.model import Checkpoint, Standing
from batchkit.slicing.carry import read_carry
from batchkit.slicing.course import Course
from batchkit.slicing.items import Items
from batchkit.slicing.trials import Trials
from batchkit.store import ChunkTransaction

_logger = logging.getLogger("batchkit")


class OnceWork:
    """Works the chunks of one slice."""

    def __init__(self, course: Course, trials: Trials, items: Items) -> None:
        self._course = course
        self._trials = trials
        self._items = items
        #: that the failures of the chunk, which are recorded, are more than the job allows
        self._refused: Refused | None = None

    def close(self) -> None:
        """Do nothing: nothing is kept."""

    def next(self) -> Standing | None:
        """
        Call the function for the next items, once; None where none is left.

        What becomes of them is committed, whatever it is, before the next: done, failed, or in doubt.

        Raises:
            Stopped, HeldBack, LeaseLost
            WorkerKilled: reading the items has killed its workers often enough.
            Exception: what makes the run fail.
        """
        while True:
            self._course.check_goes_on()
            marked = self._trials.with_faults(self._mark)
            if marked is None:
                return None
            self._refused = standing = None
            try:
                standing = self._call(*marked)
            except Exception as error:
                if self._trials.is_interruption(error) or not self._trials.is_of_database(error):
                    raise
                self._leave_in_doubt(error)
            if self._refused is not None:
                raise self._course.too_many(self._refused)
            if standing is not None:
                return standing

    def _mark(self) -> tuple[ChunkTransaction, Read] | None:
        """
        Move past the next items, and write down that they are in doubt, before anything is done for them.

        Where that was committed already and its reply was lost, nothing was done for them yet: they are read again.
        """
        course, doubt = self._course, self._course.lease.doubt
        if doubt is None:
            self._items.keep_pace()
            # What kills its workers before anything is in doubt is no item, but what gives them.
            course.goes_by(course.caution.before_step(course.lease))
        course.begin_chunk()
        lease = course.lease if doubt is None else replace(course.lease, cursor=after_of(doubt))
        transaction, read = self._items.begin(lease)
        try:
            course.cutter.chunk_ends()
            if not read.pairs:
                transaction.rollback()
                return None
            checkpoint = Checkpoint(
                cursor=read.last,
                done=0,
                failed=0,
                carry=lease.carry,
                chunk_size=len(read.pairs),
                rate=course.rate,
                doubt=course.isolation.doubt(read),
                chunk_seconds=lease.chunk_seconds,
            )
            moved, _ = transaction.checkpoint(course.around.store.leases, course.lease, checkpoint)
            transaction.end_reading()
        except BaseException as error:
            course.undo(transaction, error)
            raise
        course.marked(moved)
        return transaction, read

    def _call(self, transaction: ChunkTransaction, read: Read) -> Standing:
        """Call the function, and commit what became of the items together with what it wrote."""
        course = self._course
        course.isolation.begin()
        chunk = self._items.chunk(read, transaction)
        try:
            failed = self._try_once(chunk, read, transaction)
            transaction.keep_nothing_of_dry_run()
            done = len(chunk) - len(failed)
            self._refused = course.isolation.record_tried(transaction, course.lease, failed, done=done)
            course.isolation.resolve(transaction, chunk, read)
            checkpoint = self._items.checkpoint(read.last, chunk)
            moved, standing = transaction.checkpoint(course.around.store.leases, course.lease, checkpoint)
            transaction.commit()
        except BaseException as error:
            course.undo(transaction, error)
            raise
        course.moved_on(moved)
        return standing

    def _try_once(self, chunk: Chunk[Any], read: Read, transaction: ChunkTransaction) -> Sequence[Failed]:
        """Call the function, and give the items that have failed: where it raises, all of them."""
        course = self._course
        try:
            course.cutter.chunk_begins()
            self._items.call(chunk, transaction)
            course.cutter.chunk_ends()
        except Exception as error:
            course.cutter.chunk_ends()
            for index in range(len(chunk)):
                chunk.give_up(index, error)
            chunk.carry = read_carry(course.lease.carry)
            failed = course.isolation.failed_in(chunk, read)
            if self._trials.is_interruption(error):
                raise
            # Whether the connection is gone shows when it is to roll back.
            transaction.rollback()
            if self._trials.is_of_database(error):
                raise
            return failed
        course.calls_after_commit(chunk.committed_calls)
        return course.isolation.failed_in(chunk, read)

    def _leave_in_doubt(self, error: Exception) -> None:
        """Record what the function was called for as in doubt, unless what became of it was committed after all."""
        course = self._course
        _logger.warning("a chunk is in doubt", extra={"run_id": course.lease.run_id}, exc_info=error)
        if self._trials.is_away(error):
            course.held.discard()
            self._trials.adopt_position()
        if course.lease.doubt is None:
            return
        self._refused = None
        course.calls_after_commit(())
        course.marked(self._trials.with_faults(lambda: course.around.store.leases.leave_in_doubt(course.lease)))
        # What is in doubt lies behind: the next chunk is tried for the first time.
        course.isolation.moved_on(0, 0.0)
