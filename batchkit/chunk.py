"""What the user's functions are given: a chunk of items, or the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, overload

from batchkit.model import RunId

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

T = TypeVar("T")


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

    __slots__ = ("_items", "_stopping", "_transaction", "attempt", "carry", "number", "partition", "run_id")

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
    ) -> None:
        self._items = items
        self._transaction = transaction
        self._stopping = stopping
        self.run_id = run_id
        #: which of the run's partitions the items belong to, from 0
        self.partition = partition
        #: how many chunks of the partition have been committed, this one included
        self.number = number
        #: 1 at the first try at these items
        self.attempt = attempt
        #: a JSON dict of yours that is saved with the checkpoint, one for each partition: sums, upload ids
        self.carry = carry

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


class Finish:
    """
    The end of a run: what a job's `finish` function is given, once all items are done.

    What is written through `session` or `connection` commits together with the run's success.
    """

    __slots__ = ("_transaction", "carries", "done", "failed", "run_id")

    def __init__(
        self,
        *,
        transaction: Transaction,
        run_id: RunId,
        done: int,
        failed: int,
        carries: Sequence[dict[str, object]],
    ) -> None:
        self._transaction = transaction
        self.run_id = run_id
        #: how many items were committed
        self.done = done
        #: how many items were recorded as failures
        self.failed = failed
        #: the last `chunk.carry` of each partition, in the order of the partitions
        self.carries = carries

    @property
    def session(self) -> Session:
        """The ORM session of the transaction that makes the run succeeded."""
        return self._transaction.session

    @property
    def connection(self) -> Connection:
        """The Core connection of the transaction that makes the run succeeded."""
        return self._transaction.connection
