"""What the doings of each job add up to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, case, false, func, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.sql.selectable import Select

from batchkit.states import FINAL, PartitionKind, RunState
from batchkit.store.database import Database
from batchkit.store.statements import Statements
from batchkit.totals import JobTotals


class TotalsStatements(Statements):
    """The statements that sum up."""

    def of_runs(self) -> Select[Any]:
        """Count the runs of each job in each state; they are read whole, so this takes longer the more there are."""
        run = self.run.c
        return select(
            run.job, run.state, func.count().label("runs"), func.sum(run.interruptions).label("interruptions")
        ).group_by(run.job, run.state)

    def of_items(self) -> Select[Any]:
        """Sum up the counters of all items, by job and by whether the runs have ended."""
        run, partition = self.run.c, self.partition.c
        is_final = case((run.state.in_(sorted(FINAL)), 1), else_=0)
        return (
            select(
                run.job,
                is_final.label("is_final"),
                func.sum(partition.seq).label("checkpoints"),
                func.sum(partition.done).label("done"),
                func.sum(partition.failed).label("failed"),
                func.sum(partition.in_doubt).label("in_doubt"),
            )
            .join(self.run, run.id == partition.run_id)
            .where(partition.kind == PartitionKind.ITEMS, run.is_dry_run.is_(false()))
            .group_by(run.job, is_final)
        )

    def of_unfinished(self) -> Select[Any]:
        """Sum up how many items the unfinished runs of each job have, and count those that do not know."""
        run = self.run.c
        is_unknown = func.sum(case((run.total.is_(None), 1), else_=0), type_=Integer)
        return (
            select(run.job, func.sum(run.total).label("items"), is_unknown.label("unknown"))
            # Named, so that the index on the state finds these few.
            .where(run.finished_at.is_(None), run.state.in_(sorted({*RunState} - FINAL)), run.is_dry_run.is_(false()))
            .group_by(run.job)
        )


class Totals:
    """The sums over all runs of one database. Nothing here changes anything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = TotalsStatements(database.tables, database.clock)

    def by_job(self) -> tuple[JobTotals, ...]:
        """Sum up by job, in the order of their names."""
        with self._database.reading() as tx:
            runs = tx.execute(self._statements.of_runs()).mappings().all()
            items = tx.execute(self._statements.of_items()).mappings().all()
            unfinished = {row["job"]: row for row in tx.execute(self._statements.of_unfinished()).mappings()}
        return tuple(
            _totals(
                job,
                [row for row in runs if row["job"] == job],
                [row for row in items if row["job"] == job],
                unfinished.get(job),
            )
            for job in sorted({row["job"] for row in runs})
        )


def _totals(job: str, runs: list[RowMapping], items: list[RowMapping], unfinished: RowMapping | None) -> JobTotals:
    counts = {row["state"]: row["runs"] for row in runs}
    is_known = unfinished is None or not unfinished["unknown"]
    return JobTotals(
        job=job,
        runs={state: counts.get(state, 0) for state in RunState},
        interruptions=_sum(runs, "interruptions"),
        checkpoints=_sum(items, "checkpoints"),
        done=_sum(items, "done"),
        failed=_sum(items, "failed"),
        in_doubt=_sum(items, "in_doubt"),
        unfinished_done=_sum([row for row in items if not row["is_final"]], "done"),
        unfinished_items=int(unfinished["items"] if unfinished is not None else 0) if is_known else None,
    )


def _sum(rows: list[RowMapping], name: str) -> int:
    return sum(int(row[name]) for row in rows)
