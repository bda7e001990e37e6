"""At most once: what is in doubt while a chunk is worked, and after a crash."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import add_column, drop_column
from batchkit.store.tables import LONG_TEXT

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of the runs that are there nothing is in doubt."""
    add_column("batchkit_partition", sa.Column("doubt", LONG_TEXT))
    add_column("batchkit_partition", sa.Column("in_doubt", sa.BigInteger, nullable=False, server_default="0"))
    add_column("batchkit_failure", sa.Column("in_doubt", sa.Boolean, nullable=False, server_default=sa.false()))
    add_column("batchkit_run", sa.Column("retries_in_doubt", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop them. Cancel runs that work at most once before that: they would go on as others do."""
    drop_column("retries_in_doubt", "batchkit_run")
    drop_column("in_doubt", "batchkit_failure")
    drop_column("in_doubt", "batchkit_partition")
    drop_column("doubt", "batchkit_partition")
