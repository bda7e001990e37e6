"""Places that workers die at: what is known of each."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import add_column, drop_column
from batchkit.store.tables import LONG_TEXT

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nothing is suspected of the partitions that are there."""
    add_column("batchkit_partition", sa.Column("suspicion", LONG_TEXT))


def downgrade() -> None:
    """Drop it: what kills its workers is found anew."""
    drop_column("suspicion", "batchkit_partition")
