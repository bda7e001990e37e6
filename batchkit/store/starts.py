"""Starting runs, each with a transaction of its own or as part of one of the user's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from batchkit.errors import (
    RunActive,
)
from batchkit.model import NewRun, Range, RunId
from batchkit.states import (
    PartitionKind,
    PartitionState,
    RunState,
)
from batchkit.store.database import Database
from batchkit.store.runs import Runs
from batchkit.store.statements import Statements

R = TypeVar("R")

#: How often a key is tried for that others take and give back at the same time.
_ATTEMPTS = 10


class Starts:
    """Starting runs, each with a transaction of its own or as part of one of the user's."""

    def __init__(self, database: Database, runs: Runs) -> None:
        self._database = database
        self._runs = runs
        self._statements = Statements(database.tables, database.clock)

    def create(self, new: NewRun) -> None:
        """
        Write a queued run with its first partition.

        Raises:
            RunPurged: the run whose failures it is to try again was purged.
        """
        with self._database.transaction() as tx:
            self._create(tx, new)

    def join(self, new: NewRun) -> RunId:
        """
        Write a queued run unless its start key has one already; give the id of the run that has it.

        Raises:
            RunActive: another unfinished run has its unique key.
        """
        if not new.has_keys:
            self.create(new)
            return new.id

        def attempt() -> RunId:
            with self._database.reading() as tx:
                existing = self._existing(tx, new)
            if existing is None:
                self.create(new)
            return existing or new.id

        return _against_others(attempt)

    def join_in(self, tx: Connection, new: NewRun) -> RunId:
        """
        Do what `join` does as part of *tx*, a transaction of the user's.

        Raises:
            RunActive: another unfinished run has its unique key.
        """
        if not new.has_keys:
            self._create(tx, new)
            return new.id

        def attempt() -> RunId:
            # What others have committed since may be hidden from *tx*, and what *tx* has written is hidden from others.
            with self._database.reading() as other:
                existing = self._existing(tx, new) or self._existing(other, new)
            if existing is None:
                with self._database.dialect.attempting(tx):
                    self._create(tx, new)
            return existing or new.id

        return _against_others(attempt)

    def retire_key(self, run_id: RunId, start_key: str) -> None:
        """Let a start key begin another run; where another has taken it from this one already, do nothing."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.retire_key(run_id, start_key, retired=f"{start_key}:{run_id}"))

    def find(self, *, start_key: str | None) -> RunId | None:
        """Find the run that a message has started; None where there is none, or no key."""
        if start_key is None:
            return None
        with self._database.reading() as tx:
            return self._find(tx, start_key)

    def _create(self, tx: Connection, new: NewRun) -> None:
        self._runs.keep_origin(tx, new.failures_of, retry=new.rerun_of or new.id)
        # First, so that where its keys are taken nothing is written.
        tx.execute(self._statements.insert_run(new))
        first = Range(after=new.after)
        tx.execute(
            self._statements.insert_partition(
                new.id,
                0,
                first,
                kind=PartitionKind.ITEMS,
                state=PartitionState.OPEN,
                is_shared=new.partitions > 1,
            )
        )
        reason = _reason_to_start(new)
        tx.execute(self._statements.insert_transition(new.id, None, RunState.QUEUED, reason=reason, worker=None))

    def _existing(self, tx: Connection, new: NewRun) -> RunId | None:
        """Find the run that has the start key of *new*; one that only has its unique key is in the way."""
        active = None
        if new.unique_key is not None:
            active = tx.execute(self._statements.active_run(new.unique_key)).scalar_one_or_none()
        # After that: a start with the same key that commits between the two is found here.
        existing = None if new.start_key is None else self._find(tx, new.start_key)
        if existing is None and active is not None:
            raise RunActive(active, job=new.job)
        return existing

    def _find(self, tx: Connection, start_key: str) -> RunId | None:
        found = tx.execute(self._statements.run_with_key(start_key)).scalar_one_or_none()
        return None if found is None else RunId(found)


def _against_others(attempt: Callable[[], R]) -> R:
    """Do *attempt*, which looks for a key and takes it; again where another was quicker, or has given it back since."""
    for _ in range(_ATTEMPTS):
        with suppress(IntegrityError):
            return attempt()
    return attempt()


def _reason_to_start(new: NewRun) -> str:
    if new.failures_of is not None:
        return f"started to try the failures of {new.failures_of} again"
    if new.rerun_of is not None:
        return f"started as a rerun of {new.rerun_of}"
    # repr: a key may hold what a database's text cannot.
    return "started" if new.key is None else f"started with the key {new.key!a:.200}"
