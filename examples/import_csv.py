"""
Import an awkward CSV file of 50,000 orders into a table: `python -m examples.import_csv`.

Its fields hold quotes, commas and newlines, its text is of many scripts, and some of its bytes are no UTF-8.
Kill it and call it again: each order is in the table exactly once.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

from sqlalchemy import Column, Integer, MetaData, Numeric, String, Table, create_engine, delete, func, insert, select

from batchkit import BatchKit, Chunk, Run, Source, batched, csv_rows
from batchkit.cli.working import run_with_bar

DATABASE_URL = os.environ.get("BATCHKIT_DATABASE_URL", "sqlite:///batchkit-example.db")
FILE = Path("batchkit-example-orders.csv")
ORDERS = 50_000
CUSTOMERS = ["Zoë", "Jürgen Groß", "Ελένη", "Ирина", "山田太郎", "O'Hara, Scarlett", 'Dwayne "The Rock"', "👩‍🚀"]
NOTES = ["", "urgent", 'says "hello", twice', "ring the bell\nthen wait", "a;b|c\td", "\r\nleft at the door", '""']

engine = create_engine(DATABASE_URL)
kit = BatchKit(DATABASE_URL)

orders = Table(
    "example_order",
    MetaData(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("customer", String(100), nullable=False),
    Column("note", String(200), nullable=False),
    Column("amount", Numeric(10, 2), nullable=False),
)


def records(path: str) -> Source[dict[str, str]]:
    """Say where the items come from: the records of a file, as dicts of strings."""
    # "replace" puts U+FFFD in the place of bytes that are no UTF-8; without it such a file would fail the run.
    return csv_rows(path, encoding="utf-8", errors="replace")


@batched(records, chunk_size=1000, lease=5)
def import_orders(chunk: Chunk[dict[str, str]], path: str) -> None:  # noqa: ARG001  the source needs it
    """Insert a chunk of orders."""
    # One statement for the chunk. The primary key would refuse an order that came twice.
    values = [{**record, "number": int(record["number"]), "amount": float(record["amount"])} for record in chunk]
    chunk.connection.execute(insert(orders), values)


def write_file() -> None:
    """Write the file, with a name in Latin-1 here and there, which is no UTF-8."""
    with FILE.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "customer", "note", "amount"])
        for number in range(1, ORDERS + 1):
            customer = CUSTOMERS[number % len(CUSTOMERS)]
            if number % 1000 == 0:
                customer = "Jos\udce9"  # written as the one byte 0xE9, which is é in Latin-1
            writer.writerow([number, customer, NOTES[number % len(NOTES)], f"{number % 997}.{number % 100:02}"])


def count_records() -> int:
    """Count the records of the file in another way than batchkit does."""
    with FILE.open(encoding="utf-8", errors="replace", newline="") as file:
        return len(list(csv.DictReader(file)))


def unfinished_or_new_run() -> Run:
    """Give the run that was not finished last time, else a new one into an empty table."""
    for unfinished in kit.runs(job=import_orders.name, state=["queued", "running"], limit=1):
        return unfinished
    if not FILE.exists():
        write_file()
    orders.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(delete(orders))
    return import_orders.start(path=str(FILE))


def main() -> int:
    """Import the file, then compare the table with it."""
    kit.migrate()
    code = run_with_bar(kit, unfinished_or_new_run(), again="python -m examples.import_csv")
    with engine.connect() as connection:
        in_table = connection.scalar(select(func.count()).select_from(orders)) or 0
    in_file = count_records()
    print(f"records in the file: {in_file:,}, rows in the table: {in_table:,}")
    return code if code or in_table == in_file else 1


if __name__ == "__main__":
    sys.exit(main())
