"""The SQL of runs and partitions, by subject: one function is one statement, with its guard visible."""

from __future__ import annotations

from batchkit.store.statements.announcing import Announcing
from batchkit.store.statements.claiming import Claiming
from batchkit.store.statements.failing import Failing
from batchkit.store.statements.holding import Holding
from batchkit.store.statements.reading import Reading
from batchkit.store.statements.settling import Settling
from batchkit.store.statements.starting import Starting
from batchkit.store.statements.stealing import Stealing
from batchkit.store.statements.terms import PATIENCE_SECONDS, unindexed
from batchkit.store.statements.waking import Waking

__all__ = ["PATIENCE_SECONDS", "Statements", "unindexed"]


class Statements(Starting, Claiming, Holding, Stealing, Settling, Waking, Announcing, Failing, Reading):
    """The statements of all subjects, for the tables of one schema and one clock."""
