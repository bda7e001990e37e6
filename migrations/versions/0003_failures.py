"""Items that failed, runs that try them again, and how often chunks were tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from batchkit.store.clock import UtcTime
from batchkit.store.steps import add_column, create_index, create_table, drop_column, drop_table
from batchkit.store.tables import LONG_TEXT

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the columns."""
    schema = context.config.attributes["schema"]
    for column in (
        sa.Column("failures_of", sa.String(26)),
        sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("retry_reason", LONG_TEXT),
    ):
        add_column("batchkit_run", column)
    run_id = f"{schema}.batchkit_run.id" if schema else "batchkit_run.id"
    create_table(
        "batchkit_failure",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(26), sa.ForeignKey(run_id, ondelete="CASCADE"), nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("after", LONG_TEXT),
        sa.Column("cursor", LONG_TEXT, nullable=False),
        sa.Column("item", LONG_TEXT, nullable=False),
        sa.Column("error_type", sa.String(255), nullable=False),
        sa.Column("message", LONG_TEXT, nullable=False),
        sa.Column("traceback", LONG_TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failed_at", UtcTime, nullable=False),
        sa.Column("retried_by", sa.String(26)),
        sa.Column("resolved_at", UtcTime),
    )
    create_index("ix_batchkit_failure_run", "batchkit_failure", ["run_id", "id"])
    create_index("ix_batchkit_failure_retried_by", "batchkit_failure", ["retried_by", "id"])


def downgrade() -> None:
    """Drop them: what failed is forgotten, the counters stay."""
    drop_table("batchkit_failure")
    for name in ("retry_reason", "retries", "failures_of"):
        drop_column(name, "batchkit_run")
