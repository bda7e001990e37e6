"""Cuts: ranges that are cut while they are worked, for workers that find nothing else of a run."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import add_column, drop_column

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """
    Add the columns; the partitions that are there were cut when their runs were planned.

    Workers of an older version work what was cut like any other partition, and cut nothing themselves. Only one that
    ends a run takes its partitions in the order of their numbers, which is that of their items no more.
    """
    add_column("batchkit_partition", sa.Column("cut_from", sa.Integer))
    add_column("batchkit_partition", sa.Column("cuts_wanted", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them. Unfinished runs go on; of those that were cut, the order of the partitions is forgotten."""
    drop_column("cuts_wanted", "batchkit_partition")
    drop_column("cut_from", "batchkit_partition")
