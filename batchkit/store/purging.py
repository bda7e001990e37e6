"""Removing runs that ended long ago, in transactions so short that nobody waits for them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, and_, delete, exists, literal, or_, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId, run_id_at
from batchkit.starting_keys import KEYS_OF_USERS
from batchkit.states import FINAL, RunState
from batchkit.store.database import Database
from batchkit.store.statements import Statements, unindexed

#: How many rows a transaction removes at the most.
_ROWS_AT_ONCE = 1000
_RUNS_AT_ONCE = 100
#: By how much the clock of whoever started a run may have been wrong.
_CLOCK_SLACK_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge has removed."""

    #: runs that are gone
    runs: int = 0
    #: runs of which only what a start with the same key must find was kept
    kept: int = 0
    failures: int = 0
    transitions: int = 0


class PurgeStatements(Statements):
    """The statements that remove runs."""

    def purgeable(self, *, seconds: float, states: Collection[RunState], limit: int, after: str) -> Select[Any]:
        """Find runs that ended so long ago, whose end was told, and whose failures nobody may try again."""
        run, transition = self.run.c, self.transition.c
        is_keyed = run.start_key.like(f"{KEYS_OF_USERS}%")
        return (
            select(run.id)
            .where(
                run.state.in_(states),
                # It ended after it began: the index finds the old ones by their ids, which begin with the time.
                run.id > after,
                run.id < run_id_at(time.time() + self.clock.shift() - seconds + _CLOCK_SLACK_SECONDS),
                run.finished_at <= self.ago(seconds),
                run.announce_at.is_(None),
                # What is kept for its key stays. Its purge is over when its history is gone, the last to go.
                or_(
                    run.start_key.is_(None),
                    ~is_keyed,
                    exists().where(transition.run_id == run.id),
                ),
                ~exists().where(self._tries_again(run.id)),
            )
            .order_by(run.id)
            .limit(limit)
        )

    def is_tried_again(self, run_id: RunId) -> Select[Any]:
        """Tell whether a run that may still go on has the failures of another for its items."""
        return select(exists().where(self._tries_again(literal(run_id))))

    def _tries_again(self, run_id: ColumnElement[str]) -> ColumnElement[bool]:
        retry = self.run.alias("retry").c
        # One that failed is not over: it may be resumed, and would find nothing to do.
        may_go_on = or_(retry.state.not_in(FINAL), and_(retry.state == RunState.FAILED, retry.purged_at.is_(None)))
        return and_(retry.failures_of == run_id, may_go_on)

    def begin_purge(self, run_id: RunId, *, seconds: float, states: Collection[RunState]) -> Executable:
        """Win the right to remove what belongs to a run: from now on nobody can resume it."""
        run = self.run.c
        return (
            update(self.run)
            .where(run.id == run_id, unindexed(run.state).in_(states), run.finished_at <= self.ago(seconds))
            .values(purged_at=self.clock.now(), message=None)
        )

    def some_of(self, table: Table, run_id: RunId, limit: int) -> Select[Any]:
        """Find rows of a table that belong to a run."""
        return select(table.c.id).where(table.c.run_id == run_id).order_by(table.c.id).limit(limit)

    def remove(self, table: Table, ids: Collection[int]) -> Executable:
        """Remove rows by their ids: a range would lock its neighbours on MySQL."""
        return delete(table).where(table.c.id.in_(ids))

    def some_partitions(self, run_id: RunId, limit: int) -> Select[Any]:
        """Find partitions of a run."""
        partition = self.partition.c
        return select(partition.number).where(partition.run_id == run_id).order_by(partition.number).limit(limit)

    def remove_partitions(self, run_id: RunId, numbers: Collection[int]) -> Executable:
        """Remove partitions of a run that was purged."""
        partition = self.partition.c
        return delete(self.partition).where(partition.run_id == run_id, partition.number.in_(numbers))

    def remove_run(self, run_id: RunId) -> Executable:
        """Remove a run that was purged."""
        return delete(self.run).where(self.run.c.id == run_id, self.run.c.purged_at.is_not(None))


class Purging:
    """
    Removes runs that ended long ago, with their partitions, failures and histories.

    A run that a user has given a key stays, with its counters and its result, so that another start with the key finds
    it: that is what the key was for. A run stays while another may try its failures again, also one that failed doing
    so. Several purges at once do no harm.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = PurgeStatements(database.tables, database.clock)

    def purge(self, *, seconds: float, states: Collection[RunState] = FINAL, limit: int | None = None) -> Purged:
        """Remove the runs that ended more than *seconds* ago, *limit* of them at the most."""
        runs = kept = failures = transitions = 0
        after = ""
        while limit is None or runs + kept < limit:
            left = _RUNS_AT_ONCE if limit is None else min(_RUNS_AT_ONCE, limit - runs - kept)
            found = self._find(seconds, states, left, after)
            for run_id in found:
                run = self._begin(run_id, seconds, states)
                if run is not None:
                    failures += self._remove_all(self._statements.failure, run_id)
                    transitions += self._remove_all(self._statements.transition, run_id)
                    is_kept = str(run["start_key"] or "").startswith(KEYS_OF_USERS)
                    kept += is_kept
                    runs += not is_kept
                    if not is_kept:
                        self._remove_run(run_id)
            if not found:
                break
            after = found[-1]
        return Purged(runs=runs, kept=kept, failures=failures, transitions=transitions)

    def _find(self, seconds: float, states: Collection[RunState], limit: int, after: str) -> list[RunId]:
        statement = self._statements.purgeable(seconds=seconds, states=states, limit=limit, after=after)
        with self._database.reading() as tx:
            return [RunId(run_id) for run_id in tx.execute(statement).scalars()]

    def _begin(self, run_id: RunId, seconds: float, states: Collection[RunState]) -> RowMapping | None:
        with self._database.transaction() as tx:
            # Whoever begins to try its failures again, or goes on with that, locks it too: one of us comes first.
            tx.execute(self._statements.lock_run(run_id))
            if tx.execute(self._statements.is_tried_again(run_id)).scalar_one():
                return None
            if tx.execute(self._statements.begin_purge(run_id, seconds=seconds, states=states)).rowcount != 1:
                return None
            return tx.execute(self._statements.read_run(run_id)).mappings().one()

    def _remove_all(self, table: Table, run_id: RunId) -> int:
        removed = 0
        while True:
            with self._database.transaction() as tx:
                ids = tx.execute(self._statements.some_of(table, run_id, _ROWS_AT_ONCE)).scalars().all()
                if not ids:
                    return removed
                removed += tx.execute(self._statements.remove(table, ids)).rowcount

    def _remove_run(self, run_id: RunId) -> None:
        while True:
            with self._database.transaction() as tx:
                numbers = tx.execute(self._statements.some_partitions(run_id, _ROWS_AT_ONCE)).scalars().all()
                if not numbers:
                    tx.execute(self._statements.remove_run(run_id))
                    return
                tx.execute(self._statements.remove_partitions(run_id, numbers))
