"""Jobs that are killed: good ones, and ones with a bug that only a crash shows."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
)
from sqlalchemy.orm import Session, sessionmaker

from batchkit import BatchKit, Chunk, Finish, Source, batched, rows, span
from batchkit.queues import CeleryQueue

metadata = MetaData()
customer = Table(
    "customer",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(50), nullable=False),
)
#: numbered by the database, which leaves gaps where a chunk was rolled back
invoice = Table(
    "invoice",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("customer_id", Integer, ForeignKey("customer.id"), nullable=False),
    Column("written_at", DateTime, server_default=func.current_timestamp(), nullable=False),
)
line = Table(
    "line",
    metadata,
    Column("invoice_id", Integer, ForeignKey("invoice.id"), nullable=False),
    Column("text", String(50), nullable=False),
)
total = Table("total", metadata, Column("invoices", Integer, nullable=False))

#: where jobs leave something outside of the database
FOLDER_VARIABLE = "TESTS_CRASH_FOLDER"
CUSTOMERS = 7


def outside() -> Path:
    """Give the file that the jobs with a bug write."""
    return Path(os.environ[FOLDER_VARIABLE]) / "outside.txt"


def setup(engine: Engine) -> None:
    """Make the tables and customers, and take away the file."""
    outside().unlink(missing_ok=True)
    metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(customer), [{"id": 3 * number, "name": f"customer {number}"} for number in range(CUSTOMERS)])


def written(engine: Engine) -> dict[str, object]:
    """Give what a run has left behind: the invoices, and the lines of the file."""
    with engine.connect() as tx:
        invoices = tx.execute(select(invoice.c.customer_id).order_by(invoice.c.id)).scalars().all()
    return {"invoices": list(invoices), "file": outside().read_text() if outside().exists() else ""}


def customers() -> Source[int]:
    """Give the customers."""
    return rows(select(customer.c.id), key=customer.c.id)


def _write_invoices(chunk: Chunk[int]) -> None:
    for id_ in chunk:
        number = chunk.connection.execute(insert(invoice).values(customer_id=id_)).inserted_primary_key
        assert number is not None
        chunk.connection.execute(insert(line).values(invoice_id=number[0], text=f"for {id_}"))


def count_invoices(finish: Finish) -> int:
    """Write how many invoices there are."""
    count = finish.connection.scalar(select(func.count()).select_from(invoice)) or 0
    finish.connection.execute(insert(total).values(invoices=count))
    return count


@batched(customers, chunk_size=3, finish=count_invoices)
def good(chunk: Chunk[int]) -> None:
    """Write an invoice for each customer."""
    _write_invoices(chunk)


@batched(customers, chunk_size=3, partitions=2, finish=count_invoices)
def good_in_parts(chunk: Chunk[int]) -> None:
    """Do as `good` does, in two partitions."""
    _write_invoices(chunk)


@batched(customers, chunk_size=3)
def appends_to_a_file(chunk: Chunk[int]) -> None:
    """Write what is not rolled back with the chunk."""
    _write_invoices(chunk)
    with outside().open("a") as file:
        file.writelines(f"invoice for {id_}\n" for id_ in chunk)


@batched(customers, chunk_size=3)
def appends_after_the_commit(chunk: Chunk[int]) -> None:
    """Write what is lost with the process."""
    ids = list(chunk)

    def append() -> None:
        with outside().open("a") as file:
            file.writelines(f"invoice for {id_}\n" for id_ in ids)

    chunk.after_commit(append)


_seen = 0


@batched(customers, chunk_size=3)
def counts_in_memory(chunk: Chunk[int]) -> None:
    """Write what the process remembers."""
    global _seen  # noqa: PLW0603  that is the bug
    _seen += len(chunk)
    if _seen == CUSTOMERS:
        chunk.connection.execute(insert(total).values(invoices=_seen))


def announce(finish: Finish) -> None:
    """Write outside of the transaction that ends the run."""
    with outside().open("a") as file:
        file.write(f"{finish.done} are done\n")


@batched(customers, chunk_size=4, finish=announce)
def announces_twice(chunk: Chunk[int]) -> None:
    """Do nothing that could be wrong."""


@batched(customers, chunk_size=3)
def writes_with_another_session(chunk: Chunk[int]) -> None:
    """Commit behind the back of the chunk."""
    engine = chunk.connection.engine
    with Session(engine) as session, session.begin():
        session.execute(insert(total), [{"invoices": id_} for id_ in chunk])


@batched(customers)
def adaptive(chunk: Chunk[int]) -> None:
    """Write invoices in chunks of any size."""
    _write_invoices(chunk)


@batched(lambda: span(0), chunk_size=3)
def has_no_items(chunk: Chunk[int]) -> None:
    """Do nothing."""


@batched(customers, chunk_size=3)
def fails(chunk: Chunk[int]) -> None:
    """Raise."""
    raise ValueError("no customer is good enough")


_WORST = 18


@batched(customers, chunk_size=3, max_failures=1)
def one_item_fails(chunk: Chunk[int]) -> None:
    """Fail with one item, which is isolated."""
    if _WORST in chunk:
        raise ValueError("this one is bad")
    _write_invoices(chunk)


clock = Table("clock", MetaData(), Column("process", Integer, primary_key=True, autoincrement=False))


def setup_with_clock(engine: Engine) -> None:
    """Make a row that no two processes make alike."""
    setup(engine)
    clock.create(engine)
    with engine.begin() as tx:
        tx.execute(insert(clock).values(process=os.getpid()))


def kit_on_celery(url: str) -> BatchKit:
    """Make a kit that sends messages."""
    return BatchKit(url, queue=CeleryQueue(Celery("tests")))


def kit(url: str) -> BatchKit:
    """Make a kit with a session factory."""
    return BatchKit(url, session_factory=sessionmaker(create_engine(url)))
