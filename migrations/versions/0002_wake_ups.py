"""What queues with messages need: numbered wake-ups, the message that started a run, and what is left to announce."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, create_index, drop_column, drop_index
from batchkit.store.tables import LONG_TEXT

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; runs that are there go on with the first wake-up."""
    for column in (
        sa.Column("start_key", sa.String(255)),
        sa.Column("message", LONG_TEXT),
        sa.Column("announce_at", UtcTime),
        sa.Column("announcing_until", UtcTime),
    ):
        add_column("batchkit_run", column)
    create_index("ix_batchkit_run_start_key", "batchkit_run", ["start_key"], unique=True)
    create_index("ix_batchkit_run_announce", "batchkit_run", ["announce_at"])
    add_column("batchkit_partition", sa.Column("wake_no", sa.BigInteger, nullable=False, server_default="0"))
    add_column("batchkit_partition", sa.Column("resend_at", UtcTime))


def downgrade() -> None:
    """Drop the columns: runs started by messages go on without them, and nobody hears of their end."""
    drop_index("ix_batchkit_run_announce", "batchkit_run")
    drop_index("ix_batchkit_run_start_key", "batchkit_run")
    for table, names in {
        "batchkit_run": ("announcing_until", "announce_at", "message", "start_key"),
        "batchkit_partition": ("resend_at", "wake_no"),
    }.items():
        for name in names:
            drop_column(name, table)
