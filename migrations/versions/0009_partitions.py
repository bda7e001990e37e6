"""Runs that several workers share: how many partitions are wanted, how many workers may come, and whose turn it is."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, drop_column

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """
    Add the columns; the runs that are there have one partition.

    Workers of an older version know nothing of `max_workers` and `held_until`, and wake all partitions up at once:
    start no run with partitions before all workers are new.
    """
    add_column("batchkit_run", sa.Column("partitions", sa.Integer, nullable=False, server_default="1"))
    add_column("batchkit_run", sa.Column("max_workers", sa.Integer))
    add_column("batchkit_run", sa.Column("turn_at", UtcTime))
    add_column("batchkit_run", sa.Column("held_until", UtcTime))


def downgrade() -> None:
    """
    Drop them. Unfinished runs with several partitions go on, with no limit of their workers.

    PostgreSQL refuses it while the view `batchkit_busy` is there: drop that before.
    """
    drop_column("held_until", "batchkit_run")
    drop_column("turn_at", "batchkit_run")
    drop_column("max_workers", "batchkit_run")
    drop_column("partitions", "batchkit_run")
