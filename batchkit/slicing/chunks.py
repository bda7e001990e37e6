"""Working chunks: each with its checkpoint in one transaction, and around the items that fail."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from batchkit.errors import WorkerKilled
from batchkit.isolation import ChunkFailed, Failed, Refused
from batchkit.model import Checkpoint, Standing
from batchkit.promises import AT_LEAST_ONCE
from batchkit.slicing.course import Course
from batchkit.slicing.items import Items
from batchkit.slicing.trials import Trials


class ChunkWork:
    """Works the chunks of one slice."""

    def __init__(self, course: Course, trials: Trials, items: Items) -> None:
        self._course = course
        self._trials = trials
        self._items = items

    def close(self) -> None:
        """Let go of what was read ahead."""
        self._items.close()

    def next(self) -> Standing | None:
        """
        Commit the next chunk, or move past the next item that fails, once it is found; None where none is left.

        Raises:
            Stopped, HeldBack, LeaseLost
            Exception: what makes the run fail.
        """
        course, trials = self._course, self._trials
        while True:
            course.check_goes_on()
            try:
                if course.caution.is_at_killer(course.lease):
                    return trials.with_faults(self._pass_killer)
                return trials.with_retries(self._chunk)
            except ChunkFailed as failed:
                if course.isolation.is_found(failed) and failed.item is not None:
                    return trials.with_faults(partial(self._pass, failed.item, failed))
            except Refused as refused:
                if not refused.index:
                    raise course.too_many(refused) from None
                # Those before it are good.
                course.isolation.stop_before(refused.index)

    def _chunk(self) -> Standing | None:
        """Work the next chunk; None where there is none."""
        course, items = self._course, self._items
        # Before the pace, which is that of the items that are read.
        course.caution.narrow(course.lease, course.isolation)
        items.keep_pace()
        course.goes_by(course.caution.before_chunk(course.lease, course.isolation))
        course.begin_chunk()
        transaction, read = items.begin(course.lease)
        try:
            if not read.pairs:
                course.cutter.chunk_ends()
                transaction.rollback()
                return None
            course.isolation.begin()
            # Before the work: a cursor that cannot be stored is no fault of an item.
            cursor = read.last
            chunk = items.chunk(read, transaction)
            if course.job.options.delivery == AT_LEAST_ONCE:
                transaction.end_reading()
            with self._trials.blaming_items(read):
                items.call(chunk, transaction)
            course.calls_after_commit(chunk.committed_calls)
            course.cutter.chunk_ends()
            failed = course.isolation.failed_in(chunk, read)
            transaction.keep_nothing_of_dry_run()
            course.isolation.record(transaction, course.lease, failed, done=len(chunk) - len(failed))
            course.isolation.resolve(transaction, chunk, read)
            checkpoint = items.checkpoint(cursor, chunk)
            moved, standing = transaction.checkpoint(
                course.around.store.leases,
                course.lease,
                checkpoint,
                goes_on=course.goes_on_at_once and not items.asks_others,
                read=items.reading_ahead(checkpoint),
            )
            with self._trials.blaming_items(read):
                transaction.commit()
        except BaseException as error:
            course.undo(transaction, error)
            raise
        course.moved_on(moved)
        return standing

    def _pass_killer(self) -> Standing | None:
        """Move past an item without working it; None where it is not there any more."""
        course = self._course
        known = course.lease.suspicion
        course.caution.narrow(course.lease, course.isolation)
        course.goes_by(course.caution.before_chunk(course.lease, course.isolation))
        transaction, read = self._items.begin(course.lease)
        transaction.rollback()
        if not read.pairs:
            return None
        what = f"the item behind the cursor {course.lease.cursor}"
        refused = course.isolation.failed(WorkerKilled(course.lease.run_id, what=what), read)
        if refused.item is None or known is None:
            return None
        tried = replace(refused.item.item, attempts=len(known.ends))
        return self._pass(replace(refused.item, item=tried), refused, is_wanted=known.is_to_skip)

    def _pass(self, failed: Failed, refused: ChunkFailed, *, is_wanted: bool = False) -> Standing:
        """
        Move past the one item that fails, and record it in the same transaction.

        Raises:
            TooManyFailures: the job does not allow so many; where it allows none, what the item has raised.
        """
        course = self._course
        course.begin_passing()
        transaction = course.open()
        try:
            course.isolation.record(transaction, course.lease, [failed], done=0, is_wanted=is_wanted)
            checkpoint = Checkpoint(
                cursor=failed.item.cursor,
                done=0,
                failed=1,
                carry=course.lease.carry,
                chunk_size=1,
                rate=course.rate,
                chunk_seconds=course.lease.chunk_seconds,
            )
            moved, standing = transaction.checkpoint(course.around.store.leases, course.lease, checkpoint)
            transaction.commit()
        except Refused as too_many:
            transaction.rollback()
            too_many.cause.with_traceback(refused.traceback)
            raise course.too_many(too_many) from None
        except BaseException as raised:
            course.undo(transaction, raised)
            raise
        course.moved_on(moved)
        course.isolation.passed()
        return standing
