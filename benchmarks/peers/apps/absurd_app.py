"""absurd: one task, each chunk a step whose result, the cursor, is recorded in PostgreSQL."""

from __future__ import annotations

import functools
from typing import Any

import absurdctl
import psycopg
from absurd_sdk import Absurd, TaskContext

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

app = Absurd(rows.postgres_url())


@app.register_task(name="bench")
def run(params: dict[str, Any], ctx: TaskContext) -> None:
    """Work all chunks."""
    after: int | None = 0
    while after is not None:
        after = ctx.step("chunk", functools.partial(rows.work_behind, after, params["size"]))


def prepare() -> None:
    """Make its tables, of the schema that its command has within."""
    with psycopg.connect(rows.postgres_url(), autocommit=True) as connection:
        connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
    app.create_queue("default")


def start(work: Work) -> None:
    """Spawn the task."""
    app.spawn("bench", {"size": work.size})


if __name__ == "__main__":
    app.start_worker()
