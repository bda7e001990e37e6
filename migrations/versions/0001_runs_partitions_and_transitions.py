"""The tables of runs, partitions and transitions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from batchkit.store.clock import UtcTime
from batchkit.store.steps import create_index, create_table, drop_table
from batchkit.store.tables import DOUBLE, LONG_TEXT

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    schema = context.config.attributes["schema"]
    prefix = f"{schema}." if schema else ""
    create_table(
        "batchkit_run",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("job", sa.String(255), nullable=False),
        sa.Column("params", LONG_TEXT, nullable=False),
        sa.Column("queue", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("requested", sa.String(16)),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("delivery", sa.String(16), nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("total_is_estimate", sa.Boolean, nullable=False),
        sa.Column("identity", LONG_TEXT),
        sa.Column("fingerprint", LONG_TEXT),
        sa.Column("waiting_reason", LONG_TEXT),
        sa.Column("result", LONG_TEXT),
        sa.Column("error", LONG_TEXT),
        sa.Column("interruptions", sa.Integer, nullable=False),
        sa.Column("rerun_of", sa.String(26)),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("planned_at", UtcTime),
        sa.Column("started_at", UtcTime),
        sa.Column("finished_at", UtcTime),
    )
    create_index("ix_batchkit_run_state", "batchkit_run", ["state", "id"])
    create_index("ix_batchkit_run_job", "batchkit_run", ["job", "id"])
    create_table(
        "batchkit_partition",
        sa.Column(
            "run_id", sa.String(26), sa.ForeignKey(f"{prefix}batchkit_run.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cursor", LONG_TEXT),
        sa.Column("until", LONG_TEXT),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("carry", LONG_TEXT, nullable=False),
        sa.Column("chunk_size", sa.Integer),
        sa.Column("rate", DOUBLE),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(32)),
        sa.Column("worker", sa.String(255)),
        sa.Column("lease_seconds", DOUBLE),
        sa.Column("lease_expires_at", UtcTime),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("due_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    create_index("ix_batchkit_partition_due", "batchkit_partition", ["state", "due_at"])
    create_table(
        "batchkit_transition",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column(
            "run_id", sa.String(26), sa.ForeignKey(f"{prefix}batchkit_run.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("before", sa.String(16)),
        sa.Column("after", sa.String(16), nullable=False),
        sa.Column("reason", LONG_TEXT, nullable=False),
        sa.Column("worker", sa.String(255)),
    )
    create_index("ix_batchkit_transition_run", "batchkit_transition", ["run_id", "id"])


def downgrade() -> None:
    """Drop the tables, and with them the record of all runs."""
    for table in ("batchkit_transition", "batchkit_partition", "batchkit_run"):
        drop_table(table)
