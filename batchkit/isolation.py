"""Items that fail: finding them, recording them, and how many a run may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchkit.chunk import Chunk
from batchkit.describing import describe, describe_item
from batchkit.doubts import Doubtful, write
from batchkit.errors import TooManyFailures
from batchkit.job import Definition
from batchkit.model import FailedItem, Lease
from batchkit.narrowing import Narrowing
from batchkit.planning import Cursors
from batchkit.sizing import Sizing
from batchkit.store import ChunkTransaction, Store

#: How many items are tried before a share of failures is judged.
_LEAST_FOR_A_SHARE = 100


class ChunkFailed(Exception):
    """The function, or the database that it wrote to, has refused a chunk of so many *items*; alone, the *item*."""

    def __init__(self, error: Exception, items: int, item: Failed | None = None) -> None:
        self.error = error
        #: as it was when the error came; being raised again makes it longer
        self.traceback = error.__traceback__
        self.items = items
        self.item = item


class FetchFailed(Exception):
    """What a source asks before a chunk's transaction has raised *error*: no item is at fault."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Refused(Exception):
    """So many items have failed that the run fails at the one at *index* of its chunk, which *cause* came from."""

    def __init__(self, error: TooManyFailures, *, index: int, item: str, cause: BaseException) -> None:
        self.error = error
        self.index = index
        self.item = item
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that fails, where it stands in its chunk, and what it has raised."""

    index: int
    item: FailedItem
    error: BaseException


@dataclass(frozen=True, slots=True)
class Read:
    """What was read for a chunk: pairs of an item and its cursor, behind the lease's cursor."""

    pairs: Sequence[tuple[Any, Any]]
    cursors: Cursors
    lease: Lease

    @property
    def items(self) -> list[Any]:
        """Give the items alone."""
        return [item for item, _ in self.pairs]

    @property
    def last(self) -> str:
        """The cursor of the last item, as JSON text."""
        return self.cursors.write(self.pairs[-1][1])

    def cursor_before(self, index: int) -> str | None:
        """Give the cursor behind which the item at *index* is the first, as JSON text."""
        return self.cursors.write(self.pairs[index - 1][1]) if index else self.lease.cursor


class Isolation:
    """Keeps, for one slice, the search for items that fail."""

    def __init__(self, job: Definition, store: Store, sizing: Sizing) -> None:
        self._job = job
        self._failures = store.failures
        self._sizing = sizing
        self._narrowing = Narrowing(sizing)
        self._item_tries = 0
        #: tries since the last commit, the present one included
        self.tries = 0
        #: whether the items of the next chunk are worked apart from each other, where the function takes an item
        self.is_apart = False

    @property
    def limit(self) -> int:
        """How many items the next chunk takes at most."""
        return self._narrowing.limit

    @property
    def is_searching(self) -> bool:
        """Whether the next chunk is tried to find an item that fails, and is not that item alone."""
        return self.is_apart or (self._narrowing.is_searching and self._narrowing.limit > 1)

    def begin(self) -> None:
        """Take note that a chunk is tried."""
        self.tries += 1

    def contended(self) -> None:
        """Take note that the database has refused a chunk for the sake of others: fewer items are less in their way."""
        self._sizing.shrink(self.limit // 2)

    def moved_on(self, items: int, seconds: float) -> None:
        """Take note that so many items were committed, after so many seconds."""
        if items:
            self._narrowing.committed(items, seconds)
        self.tries = self._item_tries = 0
        self.is_apart = False

    def is_found(self, failed: ChunkFailed) -> bool:
        """Take note that a chunk failed, and tell whether that is the one item that fails."""
        if self._job.is_each and not self.is_apart:
            self.is_apart = True
            return False
        return self._narrowing.failed(failed.items)

    def stop_before(self, index: int) -> None:
        """Let the next chunk end in front of the item at *index*, which makes the run fail."""
        self._narrowing.take(index)

    def take_one(self) -> None:
        """Let the next chunk take one item, whatever its size is."""
        self._narrowing.take(1)

    def passed(self) -> None:
        """Take note that the item that fails was recorded and is behind."""
        self._narrowing.passed()

    def failed(self, error: Exception, read: Read) -> ChunkFailed:
        """Say that *error* is the fault of the items that were read, one of them or all together."""
        if len(read.pairs) > 1:
            return ChunkFailed(error, len(read.pairs))
        self._item_tries += 1
        return ChunkFailed(error, 1, self._failed_item(error, 0, read))

    def failed_in(self, chunk: Chunk[Any], read: Read) -> list[Failed]:
        """Give the items that the function itself has given up, in their order."""
        return [self._failed_item(error, index, read) for index, error in sorted(chunk.failed.items())]

    def record(
        self,
        transaction: ChunkTransaction,
        lease: Lease,
        failed: Sequence[Failed],
        *,
        done: int,
        is_wanted: bool = False,
    ) -> None:
        """
        Record items that failed, beside *done* others that did not, in the transaction that moves past them.

        Those that a person *wanted* recorded are not too many.

        Raises:
            Refused: the job does not allow so many.
            FailureResolved: another run has done one of them meanwhile.
        """
        if not failed:
            return
        tx = transaction.store_connection()
        done_before, failed_before = self._failures.tally(tx, lease.run_id, is_shared=lease.partitions > 1)
        count, allowed = failed_before + len(failed), self._job.options.max_failures
        if not is_wanted and _is_too_many(count, of=done_before + done + count, allowed=allowed):
            left = max(0, allowed - failed_before) if isinstance(allowed, int) else 0
            raise self._refused(lease, failed[min(left, len(failed) - 1)], count=count)
        self._failures.record(tx, lease, [each.item for each in failed])

    def record_tried(
        self, transaction: ChunkTransaction, lease: Lease, failed: Sequence[Failed], *, done: int
    ) -> Refused | None:
        """Record items that failed and are not tried again, and say whether these are more than the job allows."""
        try:
            self.record(transaction, lease, failed, done=done)
        except Refused as refused:
            self._failures.record(transaction.store_connection(), lease, [each.item for each in failed])
            return refused
        return None

    def doubt(self, read: Read) -> str:
        """Write down what is in doubt while the function is called for the items that were read."""
        is_again = read.lease.failures_of is not None
        doubtful = [
            Doubtful(
                cursor=read.cursors.write(cursor),
                item=describe_item(item, self._job.options.describe_item),
                failure_id=cursor if is_again else None,
            )
            for item, cursor in read.pairs
        ]
        return write(doubtful, after=read.lease.cursor)

    def _refused(self, lease: Lease, last: Failed, *, count: int) -> Refused:
        allowed, name = self._job.options.max_failures, self._job.name
        text = f"{last.item.item}: {last.item.error}"
        error = TooManyFailures(lease.run_id, job=name, failed=count, allowed=allowed, last=text)
        return Refused(error, index=last.index, item=last.item.item, cause=last.error)

    def resolve(self, transaction: ChunkTransaction, chunk: Chunk[Any], read: Read) -> None:
        """
        Mark the failures that a chunk has done as such, where failures are what the run works.

        Raises:
            FailureResolved: another run has done one of them meanwhile.
        """
        if read.lease.failures_of is not None:
            resolved = [number for index, (_, number) in enumerate(read.pairs) if index not in chunk.failed]
            self._failures.resolve(transaction.store_connection(), read.lease, resolved)

    def _failed_item(self, error: BaseException, index: int, read: Read) -> Failed:
        item, cursor = read.pairs[index]
        text = describe_item(item, self._job.options.describe_item)
        failed = FailedItem(
            after=read.cursor_before(index),
            cursor=read.cursors.write(cursor),
            item=text,
            error=describe(error, partition=read.lease.number, cursor=read.lease.cursor, item=text),
            attempts=self._item_tries or self.tries,
            failure_id=None if read.lease.failures_of is None else cursor,
        )
        return Failed(index, failed, error)


def _is_too_many(failed: int, *, of: int, allowed: float) -> bool:
    if isinstance(allowed, int):
        return failed > allowed
    return of >= _LEAST_FOR_A_SHARE and failed > allowed * of
