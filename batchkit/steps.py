"""What a resumable's generator is given: its place, and the transaction of the step that it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from batchkit.chunk import Transaction
from batchkit.errors import NoStep
from batchkit.model import RunId
from batchkit.values import Json

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

C = TypeVar("C")


@dataclass(slots=True)
class Step:
    """One step: what the generator does between two yields, in one transaction."""

    number: int
    attempt: int
    #: the cursor that was committed last
    cursor: object
    #: None once the step is over
    transaction: Transaction | None
    calls: list[Callable[[], object]] = field(default_factory=list)
    #: as the function has counted them; None where it has not
    items: int | None = None

    def count(self, items: int) -> None:
        """Add to the items of the step."""
        self.items = (self.items or 0) + items


class Steps(Generic[C]):
    """
    Where a resumable is: the cursor to go on from, and the transaction of the present step.

    What is written through `session` or `connection` commits together with the next cursor that is yielded, or with
    the end of the generator, or not at all. The session stays the same over the steps; what it has loaded is read anew
    behind a yield.
    """

    __slots__ = ("_at", "_protecting", "_stopping", "carry", "is_dry_run", "run_id")

    def __init__(
        self,
        at: Callable[[], Step],
        *,
        run_id: RunId,
        carry: dict[str, object],
        stopping: Callable[[], bool],
        protecting: Callable[[], AbstractContextManager[None]],
        is_dry_run: bool,
    ) -> None:
        self._at = at
        self._stopping = stopping
        self._protecting = protecting
        self.run_id = run_id
        #: a JSON dict of yours that is saved with each cursor: sums, upload ids
        self.carry = carry
        #: whether everything is rolled back: leave out what you do outside the transaction
        self.is_dry_run = is_dry_run

    def __repr__(self) -> str:
        return f"<Steps of run {self.run_id}, at number {self.number}>"

    @property
    def cursor(self) -> C | None:
        """What was yielded and committed last: go on behind it. None at the beginning."""
        return cast("C | None", self._at().cursor)

    @property
    def number(self) -> int:
        """How many steps of the run have been committed, this one included."""
        return self._at().number

    @property
    def attempt(self) -> int:
        """1 at the first try at this step."""
        return self._at().attempt

    @property
    def session(self) -> Session:
        """
        The ORM session of the transaction that also carries the cursor.

        Raises:
            NoStep: the generator was stopped, and its `finally` blocks cannot write any more.
        """
        return self._transaction().session

    @property
    def connection(self) -> Connection:
        """
        The Core connection of the transaction that also carries the cursor.

        Raises:
            NoStep: the generator was stopped, and its `finally` blocks cannot write any more.
        """
        return self._transaction().connection

    @property
    def should_stop(self) -> bool:
        """Whether the worker should stop soon: a long step may yield early, where it has a cursor to yield."""
        return self._stopping()

    def count(self, items: int) -> None:
        """
        Say how many items this step does, for the run's progress: by default a step counts as one.

        Said several times in a step, they add up. They count once the step is committed.
        """
        if type(items) is not int or items < 0:
            raise ValueError(f"count takes a number of items, 0 or more: got {items!r}")
        self._transaction()
        self._at().count(items)

    def after_commit(self, function: Callable[[], object]) -> None:
        """
        Have *function* called once the step is committed: at most once, in this process, and never after a crash.

        A dry run commits no step, so nothing is called there. What it raises is logged and changes nothing.
        """
        self._transaction()
        if not self.is_dry_run:
            self._at().calls.append(function)

    def protected(self) -> AbstractContextManager[None]:
        """
        Keep the step from being cut short for the length of a `with` block, though the worker's grace ends.

        For a call to another system that must not be broken off half way; a kill does not ask. No yield belongs in it.
        """
        return self._protecting()

    def _transaction(self) -> Transaction:
        transaction = self._at().transaction
        if transaction is None:
            raise NoStep(self.run_id)
        return transaction


class Resumable:
    """Stands where other jobs have a source: only the generator knows what is to do, and what its cursors mean."""

    def read(self, after: object, limit: int, session: object) -> Iterable[tuple[Any, Any]]:
        """Refuse."""
        return self._refuse(after, limit, session)

    def identity(self) -> dict[str, Json]:
        """Say that the cursors are those of a generator."""
        return {"kind": "resumable"}

    def _refuse(self, *_: object) -> NoReturn:
        message = "a resumable has no items to read"
        raise RuntimeError(message)
