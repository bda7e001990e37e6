"""The only place that speaks SQL: batchkit's tables in the user's database."""

from __future__ import annotations

from sqlalchemy import URL, Engine

from batchkit.store.clock import Clock
from batchkit.store.database import Database, HeldConnection
from batchkit.store.dialects import Server
from batchkit.store.failures import Failures
from batchkit.store.health import Backlog, ClockOffset, Health
from batchkit.store.leases import Leases
from batchkit.store.runs import Runs
from batchkit.store.schema import Schema
from batchkit.store.tables import tables
from batchkit.store.transaction import ChunkTransaction, Sessions

__all__ = [
    "Backlog",
    "ChunkTransaction",
    "Clock",
    "ClockOffset",
    "Database",
    "Failures",
    "Health",
    "HeldConnection",
    "Leases",
    "Runs",
    "Schema",
    "Server",
    "Sessions",
    "Store",
    "tables",
]


class Store:
    """Our tables in one database: runs, the leases on their partitions, and the schema itself."""

    def __init__(self, database: str | URL | Engine, *, schema: str | None = None, clock: Clock | None = None) -> None:
        self.database = Database(database, schema=schema, clock=clock)
        self.schema = Schema(self.database)
        self.runs = Runs(self.database)
        self.leases = Leases(self.database, self.runs)
        self.failures = Failures(self.database)
        self.health = Health(self.database)

    def close(self) -> None:
        """Close the pooled connections."""
        self.database.close()
