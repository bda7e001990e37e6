"""Telling, by the message that started a run, that the run has ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select

from batchkit.model import RunId, WakeUp
from batchkit.store.database import Database
from batchkit.store.statements import Statements
from batchkit.store.wake_ups import patience_with

#: How long telling of the end of a run may take before another message may try.
_ANNOUNCING_SECONDS = 20.0


class Announcements:
    """Telling, by the message that started a run, that the run has ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def unannounced(self, *, limit: int) -> list[WakeUp]:
        """Find ended runs whose message has not told of their end in time."""
        return self._wake_ups(self._statements.unannounced().where(self._statements.is_announcement_due()).limit(limit))

    def announcement(self, run_id: RunId) -> list[WakeUp]:
        """Give the message that is to tell of the end of a run, where it has not yet."""
        columns = self._database.tables.run.c
        return self._wake_ups(
            self._statements.unannounced().where(columns.id == run_id, columns.announce_at.is_not(None))
        )

    def take_announcement_resend(self, wake_up: WakeUp) -> bool:
        """Win the right to send the message of an ended run again; False when another sweep has it."""
        statement = self._statements.take_announcement_resend(wake_up.run_id, patience=patience_with(wake_up))
        with self._database.transaction() as tx:
            return tx.execute(statement).rowcount == 1

    def begin_announcing(self, run_id: RunId) -> bool:
        """Win the right to tell of the end of a run; False where nothing is to be told, or somebody is at it."""
        with self._database.transaction() as tx:
            begun = tx.execute(self._statements.begin_announcing(run_id, seconds=_ANNOUNCING_SECONDS))
            return begun.rowcount == 1

    def keep_announcing(self, run_id: RunId) -> None:
        """Keep the right to tell of the end of a run that `begin_announcing` has won."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.keep_announcing(run_id, seconds=_ANNOUNCING_SECONDS))

    def announced(self, run_id: RunId) -> None:
        """Write down that the end of a run was told."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.announced(run_id))

    def change_message(self, run_id: RunId, message: str) -> None:
        """Have another message tell of the end of a run."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.change_message(run_id, message))

    def _wake_ups(self, statement: Select[Any]) -> list[WakeUp]:
        with self._database.reading() as tx:
            return [WakeUp(**row) for row in tx.execute(statement).mappings()]
