"""Ways of starting: one unfinished run for a unique key, and runs that try a job out."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import add_column, create_index, drop_column, drop_index
from batchkit.store.tables import LONG_TEXT

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; runs that are there are of no unique key, and real."""
    for column in (
        sa.Column("unique_key", sa.String(64)),
        sa.Column("active_key", sa.String(64)),
        sa.Column("start_after", LONG_TEXT),
        sa.Column("item_limit", sa.BigInteger),
        sa.Column("is_dry_run", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        add_column("batchkit_run", column)
    create_index("ix_batchkit_run_active_key", "batchkit_run", ["active_key"], unique=True)


def downgrade() -> None:
    """Drop them. Cancel what dry runs have not ended before that: they would go on as real ones."""
    drop_index("ix_batchkit_run_active_key", "batchkit_run")
    for name in ("is_dry_run", "item_limit", "start_after", "active_key", "unique_key"):
        drop_column(name, "batchkit_run")
