"""The items of a chunk: reading them at the job's pace, and handing them to its function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from batchkit.chunk import Chunk, at_hand
from batchkit.each import work_each
from batchkit.isolation import Read
from batchkit.model import Checkpoint, Lease
from batchkit.planning import Cursors, prefetch_items, read_items
from batchkit.promises import AT_MOST_ONCE
from batchkit.replaying import FailedItems
from batchkit.slicing.carry import read_carry, write_carry
from batchkit.slicing.course import Course
from batchkit.slicing.outcome import Stopped
from batchkit.slicing.throttling import Throttling
from batchkit.slicing.trials import Trials
from batchkit.sources.base import NotFetched, Prefetching, ReadAtOnce, Source, Watched
from batchkit.store import ChunkTransaction

#: Beside a chunk that takes longer no round trip counts, and its size is to follow its time at once.
_QUICK_SECONDS = 0.05

_logger = logging.getLogger("batchkit")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the chunks of a slice are read from."""

    source: Source[Any]
    cursors: Cursors
    params: dict[str, object]
    #: the source without the end that the partition has
    whole: Source[Any]

    def place_of(self, cursor: object) -> str:
        """Give the place of an item in the job's own source, as JSON text."""
        if isinstance(self.source, FailedItems):
            return self.source.place_of(cast("int", cursor))
        return self.cursors.write(cursor)


class Items:
    """Reads the items of one slice, and calls the job's function with them."""

    def __init__(self, course: Course, trials: Trials, reading: Reading) -> None:
        self._course = course
        self._trials = trials
        self._reading = reading
        self._is_at_most_once = course.lease.delivery == AT_MOST_ONCE
        # Asked once a slice, since a check against a protocol takes long.
        self._prefetching = reading.source if isinstance(reading.source, Prefetching) else None
        self._watched = reading.source if isinstance(reading.source, Watched) else None
        self._at_once = reading.source if isinstance(reading.source, ReadAtOnce) else None
        is_plain = course.around.sessions.are_plain and self._at_once is not None and self._at_once.reads_columns
        #: where the source is read without a session, which many functions do not need
        self._by_connection = self._at_once if is_plain else None
        #: what was read with the COMMIT of the chunk before
        self._ahead: tuple[ChunkTransaction, Read] | None = None
        self._throttling = Throttling(course, trials)

    def keep_pace(self) -> None:
        """
        Wait until the next chunk may begin; see `Throttling.wait`.

        For a read that is known to give nothing, no time must be reserved and waited for.
        """
        lease, limit = self._course.lease, self._course.isolation.limit
        is_at_end = lease.left == 0 or (lease.until is not None and lease.cursor == lease.until)
        if not is_at_end:
            self._throttling.wait(limit if lease.left is None else min(limit, lease.left))

    def begin(self, lease: Lease) -> tuple[ChunkTransaction, Read]:
        """
        Open a transaction and read the next items behind the cursor of *lease*, once what that takes is fetched.

        Raises:
            FetchFailed: what the source asks has refused it.
            Stopped: the worker should stop.
        """
        course = self._course
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            transaction, read = ahead
            if read.lease.seq == lease.seq:
                return ahead
            transaction.rollback()
        while True:
            self._prefetch(lease)
            course.costs_from_now()
            transaction = course.open()
            try:
                return transaction, self._read(transaction, lease)
            except NotFetched:
                transaction.rollback()
            except BaseException as error:
                course.undo(transaction, error)
                raise
            if course.around.stop.requested:
                raise Stopped

    @property
    def asks_others(self) -> bool:
        """Whether the source asks others than the database, before a transaction begins."""
        return self._prefetching is not None

    def reading_ahead(self, checkpoint: Checkpoint) -> Callable[[], bool] | None:
        """
        Give what reads the items behind *checkpoint*, to be kept for the next `begin`; None where that is of no use.

        It is called once the chunk before is worked and before it is committed, so nothing may be against going on.
        """
        course = self._course
        is_worth_while = course.held.is_far and course.chunk_took() < _QUICK_SECONDS
        if self._at_once is None or not is_worth_while or course.lease.suspicion is not None:
            return None
        lease = course.lease.moved(checkpoint)

        def read() -> bool:
            transaction = course.open()
            try:
                # It may wait for a lock, and longer than the grace: whether it is committed then is for the next claim
                # to find out.
                course.cutter.chunk_begins()
                self._ahead = transaction, self._read(transaction, lease)
            except Exception as error:
                transaction.leave()
                if self._trials.is_interruption(error):
                    raise
                # The next chunk finds out what is wrong.
                return False
            finally:
                course.cutter.chunk_ends()
            return True

        return read

    def close(self) -> None:
        """Let go of what was read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead[0].rollback()

    def _prefetch(self, lease: Lease) -> None:
        if self._prefetching is not None:
            with self._trials.blaming_others():
                after = self._reading.cursors.read(lease.cursor)
                prefetch_items(self._prefetching, after, limit=self._course.isolation.limit, lease=lease)

    def _read(self, transaction: ChunkTransaction, lease: Lease) -> Read:
        reading = self._reading
        after = reading.cursors.read(lease.cursor)
        limit, source = self._course.isolation.limit, self._by_connection
        pairs: Sequence[tuple[Any, Any]]
        if source is None:
            pairs = read_items(reading.source, after, limit=limit, session=transaction.session, lease=lease)
        else:
            limit = limit if lease.left is None else min(limit, lease.left)
            pairs = source.read_by(after, limit, transaction.connection) if limit > 0 else []
        return Read(pairs, reading.cursors, lease)

    def chunk(self, read: Read, transaction: ChunkTransaction) -> Chunk[Any]:
        """Make the chunk of what was read."""
        course = self._course
        return Chunk(
            read.items,
            transaction=transaction,
            run_id=course.lease.run_id,
            partition=course.lease.number,
            # At most once it was moved once already for this chunk, and twice for those before it.
            number=(course.lease.seq + 1) // 2 if self._is_at_most_once else course.lease.seq + 1,
            attempt=course.isolation.tries,
            carry=read_carry(course.lease.carry),
            stopping=course.should_stop,
            keys=lambda index: self._key(read, index),
            protecting=course.protecting.protected,
            is_dry_run=course.lease.is_dry_run,
        )

    def call(self, chunk: Chunk[Any], transaction: ChunkTransaction) -> None:
        """Call the job's function for a chunk, and send to the database what it has written."""
        job, params = self._course.job, self._reading.params
        with at_hand(chunk):
            if job.is_each:
                # What is tried once must not lose what its neighbours wrote.
                is_apart = self._course.isolation.is_apart or (self._is_at_most_once and len(chunk) > 1)
                work_each(job.function, chunk, params, is_apart=is_apart, is_of_chunk=self._trials.is_of_chunk)
            else:
                job.function(chunk, **params)
        transaction.flush()
        self._warn_of_moved_key()

    def checkpoint(self, cursor: str, chunk: Chunk[Any]) -> Checkpoint:
        """Say what a chunk that was worked moves on, to *cursor*."""
        return Checkpoint(
            cursor=cursor,
            done=len(chunk) - len(chunk.failed),
            failed=len(chunk.failed),
            carry=write_carry(chunk.carry),
            chunk_size=len(chunk),
            rate=self._course.measured(len(chunk)),
            chunk_seconds=self._course.chunk_seconds(),
        )

    def _warn_of_moved_key(self) -> None:
        moved = None if self._watched is None else self._watched.moved()
        if moved is not None:
            self._watched = None
            _logger.warning(
                "a function changes the key that its items are walked by, so items may be done twice or not at all",
                extra={"run_id": self._course.lease.run_id, "job": self._course.job.name, "key": moved},
            )

    def _key(self, read: Read, index: int) -> str:
        """Name an item to other systems: by the run in which it is done, and by its place in the source."""
        place = self._reading.place_of(read.pairs[index][1])
        lease = self._course.lease
        return f"{lease.failures_of or lease.run_id}-{blake2b(place.encode(), digest_size=10).hexdigest()}"
