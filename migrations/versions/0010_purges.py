"""Purges: when the history and the failures of a run were removed."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, drop_column

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nothing was purged."""
    add_column("batchkit_run", sa.Column("purged_at", UtcTime))


def downgrade() -> None:
    """Drop it: purged runs look as if they had had no failures and no history."""
    drop_column("purged_at", "batchkit_run")
