"""Growth: what waits, what is under way and what is held are found run by run, however much is there."""

from __future__ import annotations

import sqlalchemy as sa

from batchkit.store.steps import create_index, drop_index
from batchkit.store.tables import IS_HELD, IS_RETRY, IS_UNFINISHED

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """
    Make the indexes, and drop the one that they replace. Older workers go on with them, more slowly.

    Each index reads its table once, and nothing is written to that meanwhile. On PostgreSQL
    whoever cannot wait makes them before, by `CREATE INDEX CONCURRENTLY` with these names: what is there is left alone.
    """
    create_index("ix_batchkit_partition_waiting", "batchkit_partition", ["run_id", "state", "due_at", "number"])
    create_index("ix_batchkit_partition_resend", "batchkit_partition", ["run_id", "resend_at"])
    create_index("ix_batchkit_partition_held", "batchkit_partition", ["run_id", "worker"], where=sa.text(IS_HELD))
    drop_index("ix_batchkit_partition_due", "batchkit_partition")
    create_index("ix_batchkit_run_started", "batchkit_run", ["job", "started_at"])
    create_index("ix_batchkit_run_failures_of", "batchkit_run", ["failures_of"], where=sa.text(IS_RETRY))
    create_index("ix_batchkit_run_unfinished", "batchkit_run", ["finished_at"], where=sa.text(IS_UNFINISHED))


def downgrade() -> None:
    """Make the old index again, and drop the new ones."""
    drop_index("ix_batchkit_run_unfinished", "batchkit_run")
    drop_index("ix_batchkit_run_failures_of", "batchkit_run")
    drop_index("ix_batchkit_run_started", "batchkit_run")
    create_index("ix_batchkit_partition_due", "batchkit_partition", ["state", "due_at"])
    drop_index("ix_batchkit_partition_held", "batchkit_partition")
    drop_index("ix_batchkit_partition_resend", "batchkit_partition")
    drop_index("ix_batchkit_partition_waiting", "batchkit_partition")
