"""Exports that are killed, stopped and cut off: `python -m tests.outputs.jobs URL RUN FAULT`."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, insert, select, update

from batchkit import BatchKit, Chunk, Finish, Source, batched, rows
from batchkit.outputs import csv_file, json_lines_file, publish
from batchkit.stopping import Stop

FOLDER_VARIABLE = "TESTS_OUTPUT_FOLDER"
PEOPLE = 20
LEASE_VARIABLE = "TEST_LEASE"
#: Longer than a busy machine may forget a process, unless that is to be stopped for longer than its lease.
LEASE_SECONDS = float(os.environ.get(LEASE_VARIABLE, "20"))
RENAMED = "somebody else, with a longer name"

metadata = MetaData()
person = Table(
    "person",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(50), nullable=False),
)
#: where a worker stops itself in its second chunk
STOPS_BEFORE_IT_WRITES = "stops-before-it-writes"
STOPS_BEFORE_IT_COMMITS = "stops-before-it-commits"
_fault = ""
#: the people that cannot be exported, and those of whom it shows behind the writing
bad: set[int] = set()
bad_later: set[int] = set()


def folder() -> Path:
    """Give the folder that is exported to."""
    return Path(os.environ[FOLDER_VARIABLE])


def name(number: int) -> str:
    """Name a person so that quotes, separators and ends of lines are in the file."""
    return f'person "{number}",\n' + "é" * (number % 7)


def setup(engine: Engine) -> None:
    """Make the people, and an empty folder."""
    shutil.rmtree(folder(), ignore_errors=True)
    folder().mkdir()
    metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(person), [{"id": number, "name": name(number)} for number in range(PEOPLE)])


def add_people(engine: Engine, *, until: int) -> None:
    """Make more people."""
    with engine.begin() as tx:
        tx.execute(insert(person), [{"id": number, "name": name(number)} for number in range(PEOPLE, until)])


def rename(engine: Engine, numbers: Collection[int]) -> None:
    """Give people another name."""
    with engine.begin() as tx:
        tx.execute(update(person).where(person.c.id.in_(numbers)).values(name=RENAMED))


def exported(_: Engine) -> dict[str, bytes]:
    """Give every file there is."""
    return {str(file.relative_to(folder())): file.read_bytes() for file in folder().rglob("*") if file.is_file()}


def published(engine: Engine) -> dict[str, bytes]:
    """Give the files at their places; a process that dies right behind the last commit leaves their parts."""
    return {file: content for file, content in exported(engine).items() if ".parts" not in file}


def people(path: str) -> Source[tuple[int, str]]:
    """Give the people."""
    return rows(select(person), key=person.c.id)


def publish_both(finish: Finish, path: str) -> list[int]:
    """Put both files together."""
    return [publish(finish, f"{path}.jsonl"), publish(finish, f"{path}.csv", columns=["id", "name"])]


@batched(people, chunk_size=6, finish=publish_both, lease=LEASE_SECONDS, max_failures=5)
def export(chunk: Chunk[tuple[int, str]], path: str) -> None:
    """Export people to two files at once."""
    _stop(chunk, STOPS_BEFORE_IT_WRITES)
    with (
        json_lines_file(chunk, f"{path}.jsonl") as lines,
        csv_file(chunk, f"{path}.csv", columns=["id", "name"]) as records,
    ):
        for id_, called in chunk:
            lines.write({"id": id_, "name": called})
            if id_ in bad:
                raise ValueError(f"{id_} is bad")
            records.write([id_, called])
    if any(id_ in bad_later for id_, _ in chunk):
        raise ValueError("one of them is bad")
    _stop(chunk, STOPS_BEFORE_IT_COMMITS)


def _stop(chunk: Chunk[tuple[int, str]], fault: str) -> None:
    if chunk.number == 2 and _fault == fault:
        os.kill(os.getpid(), signal.SIGSTOP)


def expected(people: Iterable[int], *, renamed: Collection[int] = ()) -> dict[str, bytes]:
    """Give the files, made in another way than batchkit does."""
    named = [(number, RENAMED if number in renamed else name(number)) for number in people]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["id", "name"], *named])
    lines = [f'{{"id":{number},"name":{json.dumps(called, ensure_ascii=False)}}}\n' for number, called in named]
    return {"people.jsonl": "".join(lines).encode(), "people.csv": text.getvalue().encode()}


def main(url: str, run_id: str, fault: str) -> None:
    """Work a run, until the fault."""
    global _fault  # noqa: PLW0603  the process is the job's
    _fault = fault
    with closing(BatchKit(url)) as kit, Stop() as stop:
        kit.work_run(kit.run(run_id).id, stop=stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
