"""Rates: when the next item of a throttled run may begin."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, drop_column

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; runs that are there begin with nothing reserved."""
    add_column("batchkit_run", sa.Column("next_item_at", UtcTime))


def downgrade() -> None:
    """Drop it."""
    drop_column("next_item_at", "batchkit_run")
