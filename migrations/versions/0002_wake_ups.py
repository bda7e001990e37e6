"""What queues with messages need: numbered wake-ups, the message that started a run, and what is left to announce."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from batchkit.store.clock import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; runs that are there go on with the first wake-up."""
    schema = context.config.attributes["schema"]
    for column in (
        sa.Column("start_key", sa.String(255)),
        sa.Column("message", sa.Text),
        sa.Column("announce_at", UtcTime),
        sa.Column("announcing_until", UtcTime),
    ):
        op.add_column("batchkit_run", column, schema=schema)
    op.create_index("ix_batchkit_run_start_key", "batchkit_run", ["start_key"], unique=True, schema=schema)
    op.create_index("ix_batchkit_run_announce", "batchkit_run", ["announce_at"], schema=schema)
    op.add_column(
        "batchkit_partition", sa.Column("wake_no", sa.BigInteger, nullable=False, server_default="0"), schema=schema
    )
    op.add_column("batchkit_partition", sa.Column("resend_at", UtcTime), schema=schema)


def downgrade() -> None:
    """Drop the columns: runs started by messages go on without them, and nobody hears of their end."""
    schema = context.config.attributes["schema"]
    op.drop_index("ix_batchkit_run_announce", "batchkit_run", schema=schema)
    op.drop_index("ix_batchkit_run_start_key", "batchkit_run", schema=schema)
    for table, names in {
        "batchkit_run": ("announcing_until", "announce_at", "message", "start_key"),
        "batchkit_partition": ("resend_at", "wake_no"),
    }.items():
        for name in names:
            op.drop_column(table, name, schema=schema)
