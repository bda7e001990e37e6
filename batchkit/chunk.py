"""What the user's functions are given: a chunk of items, or the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from batchkit.errors import NoChunk
from batchkit.model import RunId

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

T = TypeVar("T")


_at_hand: ContextVar[Chunk[Any]] = ContextVar("batchkit_chunk")


def current_chunk() -> Chunk[Any]:
    """
    Give the chunk that is being worked in this thread.

    Raises:
        NoChunk: none is.
    """
    try:
        return _at_hand.get()
    except LookupError:
        raise NoChunk from None


def current_session() -> Session:
    """
    Give the session of the chunk that is being worked in this thread.

    Raises:
        NoChunk: none is.
    """
    return current_chunk().session


@contextmanager
def at_hand(chunk: Chunk[Any]) -> Iterator[None]:
    """Make *chunk* the current one for the length of the block."""
    token = _at_hand.set(chunk)
    try:
        yield
    finally:
        _at_hand.reset(token)


class Transaction(Protocol):
    """The open transaction that a function writes through."""

    @property
    def session(self) -> Session:
        """Give the ORM session of the transaction."""
        ...

    @property
    def connection(self) -> Connection:
        """Give the Core connection of the transaction."""
        ...


class Chunk(Sequence[T]):
    """
    Consecutive items of a run, worked in one transaction.

    What is written through `session` or `connection` commits together with the checkpoint behind the last item, or
    not at all. `commit()` on the session sends the writes to the database and no more; a rollback of the whole
    transaction fails the chunk, so put what may fail into `with chunk.session.begin_nested():`.
    """

    __slots__ = (
        "_after_commit",
        "_failed",
        "_items",
        "_keys",
        "_protecting",
        "_stopping",
        "_transaction",
        "attempt",
        "carry",
        "is_dry_run",
        "number",
        "partition",
        "run_id",
    )

    def __init__(
        self,
        items: Sequence[T],
        *,
        transaction: Transaction,
        run_id: RunId,
        partition: int,
        number: int,
        attempt: int,
        carry: dict[str, object],
        stopping: Callable[[], bool],
        keys: Callable[[int], str],
        protecting: Callable[[], AbstractContextManager[None]],
        is_dry_run: bool = False,
    ) -> None:
        self._items = items
        self._transaction = transaction
        self._stopping = stopping
        self._keys = keys
        self._protecting = protecting
        self._failed: dict[int, BaseException] = {}
        self._after_commit: list[Callable[[], object]] = []
        self.run_id = run_id
        #: which of the run's partitions the items belong to, from 0
        self.partition = partition
        #: how many chunks of the partition have been committed, this one included
        self.number = number
        #: 1 at the first try at these items
        self.attempt = attempt
        #: a JSON dict of yours that is saved with the checkpoint, one for each partition: sums, upload ids
        self.carry = carry
        #: whether everything is rolled back: leave out what you do outside the transaction
        self.is_dry_run = is_dry_run

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Chunk {self.number} of run {self.run_id}, partition {self.partition}: {len(self)} items>"

    @property
    def session(self) -> Session:
        """The ORM session of the transaction that also carries the checkpoint."""
        return self._transaction.session

    @property
    def connection(self) -> Connection:
        """The Core connection of the transaction that also carries the checkpoint."""
        return self._transaction.connection

    @property
    def should_stop(self) -> bool:
        """Whether the worker should stop soon: a chunk that can end early may return once its items are done."""
        return self._stopping()

    def key(self, item: T) -> str:
        """
        Give a key for calls to other systems: 47 letters, digits and a dash.

        The same item of the same run has the same key, whatever crashes and however the chunks are cut; so it has in a
        run that tries failures of that run again. In another run it has another.

        Raises:
            ValueError: it is not an item of this chunk, or is equal to several of them: use `keyed`.
        """
        return self._keys(self._index_of(item))

    def keyed(self) -> Iterator[tuple[str, T]]:
        """Give each item with its `key`."""
        for index, item in enumerate(self._items):
            yield self._keys(index), item

    def after_commit(self, function: Callable[[], object]) -> None:
        """
        Have *function* called once the chunk is committed: at most once, in this process, and never after a crash.

        A dry run commits no chunk, so nothing is called there.

        What it raises is logged and changes nothing. For what must not be lost, write it down in the chunk's own
        transaction and have something else send it.
        """
        if not self.is_dry_run:
            self._after_commit.append(function)

    @property
    def committed_calls(self) -> Sequence[Callable[[], object]]:
        """What is to be called after the commit."""
        return self._after_commit

    def protected(self) -> AbstractContextManager[None]:
        """
        Keep the chunk from being cut short for the length of a `with` block, though the worker's grace ends.

        For a call to another system that must not be broken off half way; a kill does not ask.
        """
        return self._protecting()

    def fail(self, item: T, error: BaseException | str) -> None:
        """
        Record one item of the chunk as a failure, and go on: it counts as failed and not as done.

        What was written for it stays in the transaction; put that into `with chunk.session.begin_nested():` where it
        may fail half way. Said twice of the same item, the last error counts.

        Raises:
            ValueError: it is not an item of this chunk, or is equal to several of them.
        """
        self.give_up(self._index_of(item), RuntimeError(error) if isinstance(error, str) else error)

    def give_up(self, index: int, error: BaseException) -> None:
        """Record the item at *index* as a failure, as `fail` does."""
        self._failed[index] = error

    @property
    def failed(self) -> Mapping[int, BaseException]:
        """The errors of the items that were recorded as failures, by their index."""
        return self._failed

    def _index_of(self, item: T) -> int:
        same = [index for index, each in enumerate(self._items) if each is item]
        found = same or [index for index, each in enumerate(self._items) if each == item]
        if len(found) != 1:
            what = "is not an item of this chunk" if not found else f"stands {len(found)} times in this chunk"
            raise ValueError(f"{item!r} {what}; give the object that the chunk gave, or use chunk.keyed()")
        return found[0]


class Finish:
    """
    The end of a run: what a job's `finish` function is given, once all items are done.

    What is written through `session` or `connection` commits together with the run's success.
    """

    __slots__ = ("_transaction", "carries", "done", "failed", "in_doubt", "is_dry_run", "run_id")

    def __init__(
        self,
        *,
        transaction: Transaction,
        run_id: RunId,
        done: int,
        failed: int,
        carries: Sequence[dict[str, object]],
        is_dry_run: bool = False,
        in_doubt: int = 0,
    ) -> None:
        self._transaction = transaction
        self.run_id = run_id
        #: how many items were committed
        self.done = done
        #: how many items were recorded as failures
        self.failed = failed
        #: how many items were begun, at most once, of which nobody knows what became
        self.in_doubt = in_doubt
        #: the last `chunk.carry` of each partition, in the order of their items
        self.carries = carries
        #: whether everything is rolled back: leave out what you do outside the transaction
        self.is_dry_run = is_dry_run

    @property
    def session(self) -> Session:
        """The ORM session of the transaction that makes the run succeeded."""
        return self._transaction.session

    @property
    def connection(self) -> Connection:
        """The Core connection of the transaction that makes the run succeeded."""
        return self._transaction.connection
