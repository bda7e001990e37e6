"""Patience: how long a wake-up of several was last given to reach a worker."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import add_column, drop_column
from batchkit.store.tables import DOUBLE

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what is under way now is sent again when it is due, and then begins with the shortest."""
    add_column("batchkit_partition", sa.Column("patience_seconds", DOUBLE))


def downgrade() -> None:
    """Drop it."""
    drop_column("patience_seconds", "batchkit_partition")
