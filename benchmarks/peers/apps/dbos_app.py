"""DBOS: one workflow in this very process, each chunk a step, or a transaction that carries its own record."""

from __future__ import annotations

from dbos import DBOS, SQLAlchemyDatasource

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

DBOS(
    config={
        "name": "bench-peers",
        "system_database_url": rows.postgres_url().replace("postgresql://", "postgresql+psycopg://"),
        "log_level": "WARNING",
    }
)
source = SQLAlchemyDatasource.create(rows.postgres_url().replace("postgresql://", "postgresql+psycopg://"))


@DBOS.step()
def step(after: int, size: int) -> int | None:
    """Work a chunk and commit; that it was done is recorded after that."""
    return rows.work_behind(after, size)


# The same level as all others; its own default is SERIALIZABLE.
@source.transaction(isolation_level="READ COMMITTED")
def transaction(after: int, size: int) -> int | None:
    """Work a chunk in the transaction that records that it was done."""
    session = source.sql_session()
    found = session.execute(rows.behind, {"after": after, "size": size}).all()
    if found:
        rows.change(session, found[0].id, found[-1].id)
    return found[-1].id if found else None


@DBOS.workflow()
def in_steps(size: int) -> None:
    """Work all chunks."""
    after: int | None = 0
    while after is not None:
        after = step(after, size)


@DBOS.workflow()
def in_transactions(size: int) -> None:
    """Work all chunks."""
    after: int | None = 0
    while after is not None:
        after = transaction(after, size)
        rows.pause("after")


def launch() -> None:
    """Begin, and go on with what was in the middle when the last process of this name ended."""
    DBOS.launch()


def start_steps(work: Work) -> None:
    """Start the workflow of steps."""
    DBOS.start_workflow(in_steps, work.size)


def start_transactions(work: Work) -> None:
    """Start the workflow of transactions."""
    DBOS.start_workflow(in_transactions, work.size)
