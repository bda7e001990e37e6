"""Busy tracking: since when a partition is worked, how long its chunks take, and which workers are there."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, create_index, create_table, drop_column, drop_index, drop_table
from batchkit.store.tables import DOUBLE, LONG_TEXT

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, the index that finds what is held, and the table; of what is held now nothing is known."""
    for column in (
        sa.Column("claimed_at", UtcTime),
        sa.Column("checkpointed_at", UtcTime),
        sa.Column("chunk_seconds", DOUBLE),
        sa.Column("working_seconds", DOUBLE),
        sa.Column("is_protected", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        add_column("batchkit_partition", column)
    create_index("ix_batchkit_partition_worker", "batchkit_partition", ["worker"])
    create_table(
        "batchkit_worker",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("instance", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("queues", LONG_TEXT),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("started_at", UtcTime, nullable=False),
        sa.Column("seen_at", UtcTime, nullable=False),
        sa.Column("draining_at", UtcTime),
    )


def downgrade() -> None:
    """
    Drop them: who is busy is known by the leases alone.

    PostgreSQL refuses it while the view `batchkit_busy` is there: drop that before.
    """
    drop_table("batchkit_worker")
    drop_index("ix_batchkit_partition_worker", "batchkit_partition")
    for name in ("is_protected", "working_seconds", "chunk_seconds", "checkpointed_at", "claimed_at"):
        drop_column(name, "batchkit_partition")
