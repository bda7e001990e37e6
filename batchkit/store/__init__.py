"""The only place that speaks SQL: batchkit's tables in the user's database."""

from __future__ import annotations

from sqlalchemy import URL, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from batchkit.errors import InvalidStart
from batchkit.store.addresses import shown
from batchkit.store.announcements import Announcements
from batchkit.store.changes import Change
from batchkit.store.clock import Clock
from batchkit.store.database import Database
from batchkit.store.dialects import Server
from batchkit.store.failures import Failures
from batchkit.store.fleet import ATTEND_EVERY_SECONDS, Fleet
from batchkit.store.health import Backlog, ClockOffset, Health
from batchkit.store.held import HeldConnection
from batchkit.store.leases import Leases
from batchkit.store.outbox import Tx, after_commit, session_itself
from batchkit.store.purging import Purged, Purging
from batchkit.store.rates import Rates
from batchkit.store.records import Records
from batchkit.store.results import OpenResults
from batchkit.store.runs import Runs
from batchkit.store.schema import Schema
from batchkit.store.starts import Starts
from batchkit.store.stealing import Stealing, Worked
from batchkit.store.suspects import Suspects
from batchkit.store.tables import tables
from batchkit.store.totals import Totals
from batchkit.store.transaction import ChunkTransaction, KeptSession, Sessions
from batchkit.store.wake_ups import WakeUps

__all__ = [
    "ATTEND_EVERY_SECONDS",
    "Announcements",
    "Backlog",
    "Change",
    "ChunkTransaction",
    "Clock",
    "ClockOffset",
    "Database",
    "Failures",
    "Fleet",
    "Health",
    "HeldConnection",
    "KeptSession",
    "Leases",
    "OpenResults",
    "Purged",
    "Purging",
    "Rates",
    "Records",
    "Runs",
    "Schema",
    "Server",
    "Sessions",
    "Starts",
    "Stealing",
    "Store",
    "Suspects",
    "Totals",
    "Tx",
    "WakeUps",
    "Worked",
    "after_commit",
    "session_itself",
    "tables",
]


class Store:
    """Our tables in one database: runs, the leases on their partitions, and the schema itself."""

    def __init__(self, database: str | URL | Engine, *, schema: str | None = None, clock: Clock | None = None) -> None:
        self.database = Database(database, schema=schema, clock=clock)
        self.schema = Schema(self.database)
        self.runs = Runs(self.database)
        self.starts = Starts(self.database, self.runs)
        self.records = Records(self.database)
        self.wake_ups = WakeUps(self.database)
        self.announcements = Announcements(self.database)
        self.leases = Leases(self.database, self.runs)
        self.stealing = Stealing(self.database, self.runs)
        self.failures = Failures(self.database)
        self.suspects = Suspects(self.database)
        self.health = Health(self.database)
        self.rates = Rates(self.database)
        self.fleet = Fleet(self.database)
        self.totals = Totals(self.database)
        self.purging = Purging(self.database)

    def connection_of(self, session: Session) -> Tx:
        """
        Give the connection in whose transaction *session* writes to the store.

        Raises:
            InvalidStart: it writes to another database.
            InvalidDatabase: each of its statements commits by itself.
        """
        run = self.database.tables.run
        try:
            bind = session.get_bind(clause=run)
        except UnboundExecutionError as error:
            raise InvalidStart(
                f"the session is bound to no database that could hold {run.name}; bind it to {self.database.url}"
            ) from error
        if not self.database.is_on(bind.engine):
            raise InvalidStart(
                f"the session is on {shown(bind.engine.url)}, but the kit keeps its runs "
                f"in {self.database.url}, so one transaction cannot hold both; build the kit with the session's engine"
            )
        tx = session.connection(bind_arguments={"clause": run})
        if isinstance(bind, Engine) and bind.dialect.driver == self.database.engine.dialect.driver:
            # Not where it was given a connection: the one of a chunk is in AUTOCOMMIT, and begun by ourselves.
            self.database.check(tx)
        return tx

    def close(self) -> None:
        """Close the pooled connections."""
        self.database.close()
