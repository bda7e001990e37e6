"""What waits for a worker, and the right to send word of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select

from batchkit.model import RunId, WakeUp
from batchkit.store.database import Database
from batchkit.store.statements import PATIENCE_SECONDS, Statements

_LONGEST_PATIENCE_SECONDS = 900.0


class WakeUps:
    """What waits for a worker, and the right to send word of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def waiting(self, run_id: RunId, *, partition: int | None = None, limit: int | None = None) -> list[WakeUp]:
        """Find what of a run waits for a worker now."""
        columns = self._database.tables.partition.c
        statement = self._statements.wake_ups().where(columns.run_id == run_id).limit(limit)
        return self._wake_ups(statement if partition is None else statement.where(columns.number == partition))

    def overdue(self, *, limit: int) -> list[WakeUp]:
        """Find what waits for a worker though its message should have reached one: runs of one partition."""
        run, statements = self._database.tables.run.c, self._statements
        return self._wake_ups(statements.wake_ups().where(run.partitions == 1, statements.is_overdue()).limit(limit))

    def is_shared(self, run_id: RunId) -> bool:
        """Tell whether a run is to have several partitions."""
        with self._database.reading() as tx:
            run = tx.execute(self._statements.read_run(run_id)).mappings().one_or_none()
        return run is not None and run["partitions"] > 1

    def short_of_workers(self, *, limit: int) -> list[RunId]:
        """Find runs with several partitions that could have another worker."""
        with self._database.reading() as tx:
            return [RunId(found) for found in tx.execute(self._statements.short_of_workers(limit)).scalars()]

    def take_shares(self, run_id: RunId, *, window: int) -> list[WakeUp]:
        """
        Win the right to send wake-ups of a run: as many as are missing to *window* that are under way.

        Those whose message was lost are among them. A wake-up that is sent for the first time since a worker has come
        for its partition is given PATIENCE_SECONDS, however old the run is, and each time that nobody comes twice that.
        """
        with self._database.reading() as tx:
            found = tx.execute(self._statements.shares(run_id)).one_or_none()
        if found is None:
            return []
        under_way, workers, allowed = found
        missing = window - under_way if allowed is None else min(window, allowed - workers) - under_way
        if missing <= 0:
            return []
        columns = self._database.tables.partition.c
        statement = self._statements.wake_ups().where(columns.run_id == run_id, self._statements.is_overdue())
        overdue = self._wake_ups(statement.limit(missing))
        return [wake_up for wake_up in overdue if self._take_resend(wake_up, patience=_next_patience(wake_up))]

    def all_waiting(self, *, limit: int) -> list[WakeUp]:
        """Find what waits for a worker now."""
        return self._wake_ups(self._statements.wake_ups().limit(limit))

    def take_resend(self, wake_up: WakeUp) -> bool:
        """
        Win the right to send a wake-up of a run with one partition again.

        False when another sweep has it, or a worker has claimed meanwhile. The next time comes after as long as it has
        waited by then, within limits: a lost message at most doubles the wait, and a long backlog gets few copies.
        """
        return self._take_resend(wake_up, patience=patience_with(wake_up))

    def give_resend_back(self, wake_up: WakeUp) -> None:
        """Give back the right to send a wake-up, which could not be sent: the next sweep may."""
        with self._database.transaction() as tx:
            tx.execute(
                self._statements.send_anew(wake_up.run_id, wake_up.partition, wake_up.number, patience=wake_up.patience)
            )

    def send_soon(self, wake_up: WakeUp) -> None:
        """Have a wake-up sent again by a sweep soon: it has reached none but workers that cannot take it."""
        with self._database.transaction() as tx:
            tx.execute(
                self._statements.send_anew(wake_up.run_id, wake_up.partition, wake_up.number, seconds=PATIENCE_SECONDS)
            )

    def _take_resend(self, wake_up: WakeUp, *, patience: float) -> bool:
        with self._database.transaction() as tx:
            return tx.execute(self._statements.take_resend(wake_up, patience=patience)).rowcount == 1

    def _wake_ups(self, statement: Select[Any]) -> list[WakeUp]:
        with self._database.reading() as tx:
            return [WakeUp(**row) for row in tx.execute(statement).mappings()]


def patience_with(wake_up: WakeUp) -> float:
    """Give for how long a message that is sent again counts as under way: as long as it has waited, within limits."""
    waited = (wake_up.asked_at - wake_up.due_at).total_seconds()
    return min(max(waited, PATIENCE_SECONDS), _LONGEST_PATIENCE_SECONDS)


def _next_patience(wake_up: WakeUp) -> float:
    return PATIENCE_SECONDS if wake_up.patience is None else min(wake_up.patience * 2, _LONGEST_PATIENCE_SECONDS)
