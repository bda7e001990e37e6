"""What people are shown of runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, RowMapping

from batchkit.errors import (
    NotSerializable,
    RunNotFound,
)
from batchkit.model import Partition, Progress, RunError, RunId, RunRecord, Transition
from batchkit.states import (
    PartitionKind,
    RunState,
)
from batchkit.store.database import Database
from batchkit.store.ordering import in_order
from batchkit.store.statements import Statements
from batchkit.values import loads


class Records:
    """What people are shown of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def job_of(self, run_id: RunId) -> str:
        """
        Read the name of a run's job, and nothing of its partitions.

        Raises:
            RunNotFound: there is no such run.
        """
        with self._database.reading() as tx:
            job: str | None = tx.execute(self._statements.job_of(run_id)).scalar_one_or_none()
        if job is None:
            raise RunNotFound(run_id)
        return job

    def load(self, run_id: RunId) -> RunRecord:
        """
        Read a run.

        Raises:
            RunNotFound: there is none with this id.
        """
        with self._database.reading() as tx:
            record = self.load_in(tx, run_id)
        if record is None:
            raise RunNotFound(run_id)
        return record

    def load_in(self, tx: Connection, run_id: RunId) -> RunRecord | None:
        """Read a run as *tx* sees it; None where it sees none."""
        statement = self._statements.read_records().where(self._database.tables.run.c.id == run_id)
        row = tx.execute(statement).mappings().one_or_none()
        return None if row is None else _record(row)

    def meaning(self, run_id: RunId) -> tuple[str | None, str | None]:
        """
        Read the identity and the fingerprint of the source that a run was planned with.

        Raises:
            RunNotFound: there is none with this id.
        """
        with self._database.reading() as tx:
            run = tx.execute(self._statements.read_run(run_id)).mappings().one_or_none()
        if run is None:
            raise RunNotFound(run_id)
        return run["identity"], run["fingerprint"]

    def newest(
        self, *, job: str | None = None, states: Collection[RunState] | None = None, limit: int
    ) -> list[RunRecord]:
        """Read the newest runs."""
        run = self._database.tables.run.c
        statement = self._statements.read_records().order_by(run.id.desc()).limit(limit)
        if job is not None:
            statement = statement.where(run.job == job)
        if states is not None:
            statement = statement.where(run.state.in_(states))
        with self._database.reading() as tx:
            return [_record(row) for row in tx.execute(statement).mappings()]

    def partitions(self, run_id: RunId) -> list[Partition]:
        """Read a run's partitions, in the order of their items; `finish` comes last."""
        with self._database.reading() as tx:
            found = tx.execute(self._statements.read_partitions(run_id)).mappings().all()
        rows = in_order(found, place=lambda row: (row["number"], row["cut_from"]))
        rows.sort(key=lambda row: row["kind"] is PartitionKind.FINISH)
        return [
            Partition(
                number=row["number"],
                kind=row["kind"],
                state=row["state"],
                cursor=_cursor(row["cursor"]),
                done=row["done"],
                failed=row["failed"],
                fence=row["fence"],
                worker=row["worker"],
                lease_expires_at=row["lease_expires_at"],
                is_held=bool(row["is_live"]),
                in_doubt=row["in_doubt"],
                until=_cursor(row["until"]),
                cut_from=row["cut_from"],
            )
            for row in rows
        ]

    def history(self, run_id: RunId) -> list[Transition]:
        """Read a run's changes of state, oldest first."""
        with self._database.reading() as tx:
            rows = tx.execute(self._statements.read_history(run_id)).mappings().all()
        return [_transition(row) for row in rows]

    def transition(self, number: int) -> Transition:
        """Read a recorded change of state."""
        with self._database.reading() as tx:
            return _transition(tx.execute(self._statements.read_transition(number)).mappings().one())


def _cursor(text: str | None) -> object:
    try:
        return None if text is None else loads(text)
    except NotSerializable:
        # A value of a type that this process has not imported; people still want to see where the partition is.
        return text


def _transition(row: RowMapping) -> Transition:
    return Transition(
        at=row["at"], before=row["before"], after=row["after"], reason=row["reason"], worker=row["worker"]
    )


def _record(row: RowMapping) -> RunRecord:
    until: datetime = row["finished_at"] or row["read_at"]
    began: datetime = row["started_at"] or until
    return RunRecord(
        id=RunId(row["id"]),
        job=row["job"],
        params=row["params"],
        queue=row["queue"],
        state=row["state"],
        requested=row["requested"],
        delivery=row["delivery"],
        result=row["result"],
        error=None if row["error"] is None else RunError(**json.loads(row["error"])),
        waiting_reason=row["waiting_reason"],
        rerun_of=row["rerun_of"],
        failures_of=row["failures_of"],
        unique_key=row["unique_key"],
        after=row["start_after"],
        limit=row["item_limit"],
        is_dry_run=bool(row["is_dry_run"]),
        retries_in_doubt=bool(row["retries_in_doubt"]),
        partitions=row["partitions"],
        max_workers=row["max_workers"],
        retries=row["retries"],
        retry_reason=row["retry_reason"],
        message=row["message"],
        is_announced=row["announce_at"] is None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        purged_at=row["purged_at"],
        progress=Progress(
            done=int(row["done"]),
            failed=int(row["failed"]),
            total=row["total"],
            total_is_estimate=bool(row["total_is_estimate"]),
            rate=row["rate"],
            elapsed=until - began,
            workers=row["workers"],
            interruptions=row["interruptions"],
            chunk_size=row["chunk_size"],
            in_doubt=int(row["in_doubt"]),
        ),
    )
