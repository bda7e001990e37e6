"""What is exported is exact to the byte, whatever happens to the workers, the items and the files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from batchkit import BatchKit, Chunk, Finish, Run, RunState, batched, span
from batchkit.errors import OutputExists, OutputLost, OutputUnusable, RunFailed
from batchkit.instance import worker_name
from batchkit.outputs import csv_file, json_lines_file, publish
from batchkit.testing import crash_test, go_on, interrupt_after, restart_after_every_chunk, run_inline
from tests.outputs import jobs
from tests.waiting import eventually

_ROOT = Path(__file__).resolve().parents[2]
_ALL = jobs.expected(range(jobs.PEOPLE))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that is exported to."""
    monkeypatch.setenv(jobs.FOLDER_VARIABLE, str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def kit(sqlite_url: str) -> Iterator[BatchKit]:
    """Give a kit with people to export."""
    yield from _kit(sqlite_url)


@pytest.fixture
def server_kit(server_url: str) -> Iterator[BatchKit]:
    """Give one on a server."""
    yield from _kit(server_url)


def _kit(url: str) -> Iterator[BatchKit]:
    _with_engine(url, jobs.setup)
    with closing(BatchKit(url)) as made:
        made.migrate()
        yield made


def _with_engine(url: str, step: Callable[[Engine], None]) -> None:
    engine = create_engine(url)
    step(engine)
    engine.dispose()


@contextmanager
def _worker(url: str, run: Run, fault: str) -> Iterator[subprocess.Popen[bytes]]:
    # One that has a fault is stopped past its lease.
    env = {**os.environ, jobs.LEASE_VARIABLE: "1"} if fault else None
    worker = subprocess.Popen([sys.executable, "-m", "tests.outputs.jobs", url, run.id, fault], cwd=_ROOT, env=env)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def _files() -> dict[str, bytes]:
    return jobs.exported(create_engine("sqlite://"))


@pytest.mark.bare
@pytest.mark.timeout(300)
def test_an_export_is_exact_to_the_byte_after_a_kill_at_each_commit(database_url: str, folder: Path):
    path = str(folder / "people")
    passed = crash_test(
        jobs.export,
        params={"path": path},
        setup=jobs.setup,
        snapshot=jobs.published,
        database=database_url,
        most=10 if database_url.startswith("sqlite") else 4,
    )
    # Four chunks, and the finish.
    assert 5 == passed.commits
    assert _ALL == jobs.published(create_engine("sqlite://"))


@pytest.mark.timeout(240)
def test_an_export_is_exact_to_the_byte_after_kills_at_random_moments(kit: BatchKit, sqlite_url: str, folder: Path):
    people, kills = 3_000, 6
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    _with_engine(sqlite_url, lambda engine: jobs.add_people(engine, until=people))
    run = jobs.export.start(path=str(folder / "people"))
    for _ in range(kills):
        done = run.refresh().progress.done
        with _worker(sqlite_url, run, "") as worker:
            eventually(lambda: run.refresh().progress.done > done, within=60)  # noqa: B023  called here and now
            time.sleep(chance.uniform(0, 0.1))  # not to wait for anything: the kill is to fall at any moment
        kit.end_leases_of(worker_name(worker.pid))
    assert run.refresh().progress.done < people, f"seed {seed}"
    assert RunState.SUCCEEDED == go_on(run).state
    assert jobs.expected(range(people)) == _files(), f"seed {seed}"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", [jobs.STOPS_BEFORE_IT_WRITES, jobs.STOPS_BEFORE_IT_COMMITS])
def test_a_worker_that_wakes_up_past_its_lease_writes_where_nobody_reads(
    server_kit: BatchKit, server_url: str, folder: Path, fault: str
):
    run = jobs.export.start(path=str(folder / "people"))
    with _worker(server_url, run, fault) as sleeper:
        status = Path(f"/proc/{sleeper.pid}/stat")
        eventually(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "T", within=60)
        assert 6 == run.refresh().progress.done
        # What it has read is not what its successor reads.
        _with_engine(server_url, lambda engine: jobs.rename(engine, range(6, 12)))
        # It takes over once the lease has run out.
        assert 12 == go_on(run, chunks=1).progress.done
        os.kill(sleeper.pid, signal.SIGCONT)
        assert 0 == sleeper.wait(timeout=60)
    assert RunState.SUCCEEDED == go_on(run).state
    assert jobs.expected(range(jobs.PEOPLE), renamed=range(6, 12)) == _files()


def test_slices_of_many_threads_are_put_together_in_order(kit: BatchKit, folder: Path):
    run = interrupt_after(1, jobs.export, path=str(folder / "people"))
    for _ in range(3):
        thread = threading.Thread(target=go_on, args=[run], kwargs={"chunks": 1})
        thread.start()
        thread.join()
    # One segment of each thread.
    assert 4 == len(list(folder.glob("people.csv.*.parts/*")))
    assert [len(each) for each in _ALL.values()] == go_on(run).result
    assert _ALL == _files()


def test_slices_of_one_thread_share_a_segment(kit: BatchKit, folder: Path):
    run = interrupt_after(1, jobs.export, path=str(folder / "people"))
    go_on(run, chunks=2)
    assert 1 == len(list(folder.glob("people.csv.*.parts/*")))
    go_on(run)
    assert _ALL == _files()


@pytest.mark.parametrize("where", ["bad", "bad_later"])
def test_an_item_that_fails_leaves_nothing_in_the_file(
    kit: BatchKit, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    bad = {0, 7, 19}
    monkeypatch.setattr(jobs, where, bad)
    run = run_inline(jobs.export, path=str(folder / "people"))
    assert (RunState.SUCCEEDED, 3) == (run.state, run.progress.failed)
    assert jobs.expected(number for number in range(jobs.PEOPLE) if number not in bad) == _files()


def test_an_export_with_a_slice_for_each_chunk_is_exact_to_the_byte(kit: BatchKit, folder: Path):
    restart_after_every_chunk(jobs.export, path=str(folder / "people"))
    assert _ALL == _files()


@pytest.mark.parametrize("damage", ["removed", "shorter"])
def test_a_file_that_was_lost_fails_the_run_and_no_item_and_goes_on_once_it_is_back(
    kit: BatchKit, folder: Path, damage: str
):
    run = interrupt_after(2, jobs.export, path=str(folder / "people"))
    (segment,) = folder.glob("people.csv.*.parts/*")
    content = segment.read_bytes()
    if damage == "removed":
        shutil.rmtree(segment.parent)
    else:
        os.truncate(segment, 30)
    damaged = segment.read_bytes() if segment.exists() else None
    with pytest.raises(RunFailed, match=r"bytes of .* were committed, but it (is not there|has 30).*rerun") as failed:
        go_on(run)
    assert isinstance(failed.value.__cause__, OutputLost)
    assert (12, 0) == (run.progress.done, run.progress.failed)
    assert damaged == (segment.read_bytes() if segment.exists() else None)
    segment.parent.mkdir(exist_ok=True)
    segment.write_bytes(content)
    run.resume()
    assert RunState.SUCCEEDED == go_on(run).state
    assert _ALL == _files()


def test_bytes_that_are_not_those_that_were_committed_are_not_published(kit: BatchKit, folder: Path):
    run = interrupt_after(2, jobs.export, path=str(folder / "people"))
    (segment,) = folder.glob("people.jsonl.*.parts/*")
    segment.write_bytes(segment.read_bytes().replace(b"person", b"PERSON"))
    with pytest.raises(RunFailed, match="are not those that were committed"):
        go_on(run)
    assert not (folder / "people.jsonl").exists()
    assert {f"people.csv.{run.id}.parts", f"people.jsonl.{run.id}.parts"} == {file.name for file in folder.iterdir()}
    assert [segment] == list(segment.parent.iterdir())


def test_a_file_that_is_there_is_not_replaced(kit: BatchKit, folder: Path):
    (folder / "people.jsonl").write_bytes(b"mine")
    run = jobs.export.start(path=str(folder / "people"))
    with pytest.raises(RunFailed) as failed:
        go_on(run)
    assert isinstance(failed.value.__cause__, OutputExists)
    assert b"mine" == (folder / "people.jsonl").read_bytes()
    (folder / "people.jsonl").unlink()
    run.resume()
    go_on(run, chunks=2)
    # One that comes during the run is as safe.
    (folder / "people.csv").write_bytes(b"mine too")
    with pytest.raises(RunFailed, match="there is a file with content; move it away"):
        go_on(run)
    assert b"mine too" == (folder / "people.csv").read_bytes()
    (folder / "people.csv").write_bytes(b"")
    run.resume()
    assert RunState.SUCCEEDED == go_on(run).state
    assert _ALL == _files()


_broken = False


def _publish(finish: Finish, path: str) -> int:
    size = publish(finish, path, columns=["n"], replace=True)
    if _broken:
        raise ValueError("behind the file")
    return size


@batched(lambda path: span(0), name="tests.outputs.nothing", finish=_publish)
def nothing(chunk: Chunk[int], path: str) -> None: ...


@batched(lambda path: span(5), name="tests.outputs.numbers", chunk_size=2, finish=_publish)
def numbers(chunk: Chunk[int], path: str) -> None:
    for number in chunk:
        with csv_file(chunk, path, columns=["n"], line_end="\n", replace=True) as out:
            out.write({"n": number})


def test_a_file_without_a_record_has_its_columns(kit: BatchKit, folder: Path):
    assert 3 == run_inline(nothing, path=str(folder / "new" / "n.csv")).result
    assert {"new/n.csv": b"n\r\n"} == _files()


def test_a_file_is_replaced_where_asked_for_and_written_to_many_times_in_a_chunk(kit: BatchKit, folder: Path):
    (folder / "n.csv").write_bytes(b"old")
    assert 12 == run_inline(numbers, path=str(folder / "n.csv")).result
    assert {"n.csv": b"n\n0\n1\n2\n3\n4\n"} == _files()


def test_publishing_again_finds_what_was_published(kit: BatchKit, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "_broken", True)
    run = numbers.start(path=str(folder / "n.csv"))
    with pytest.raises(RunFailed, match="behind the file"):
        go_on(run)
    published = (folder / "n.csv").stat().st_ino
    assert 1 == len(list(folder.glob("n.csv.*.parts/*")))
    monkeypatch.setattr(sys.modules[__name__], "_broken", False)
    run.resume()
    assert 12 == go_on(run).result
    assert published == (folder / "n.csv").stat().st_ino
    assert ["n.csv"] == list(_files())


def test_a_dry_run_writes_nothing(kit: BatchKit, folder: Path):
    run = jobs.export.using(dry_run=True).start(path=str(folder / "people"))
    assert (RunState.SUCCEEDED, [0, 0]) == (go_on(run).state, run.result)
    assert {} == _files()


def test_a_folder_that_cannot_be_written_fails_the_run_and_no_item(kit: BatchKit, folder: Path):
    (folder / "file").write_text("no folder")
    run = jobs.export.start(path=str(folder / "file" / "people"))
    with pytest.raises(RunFailed, match=r"cannot be written: .*Not a directory") as failed:
        go_on(run)
    assert isinstance(failed.value.__cause__, OutputUnusable)
    assert 0 == run.progress.failed


@batched(span(4), name="tests.outputs.odd", chunk_size=1, max_failures=4)
def odd(chunk: Chunk[int]) -> None:
    path = jobs.folder() / "odd"
    with json_lines_file(chunk, path) as lines, csv_file(chunk, path, columns=["a", "b"]) as records:
        if chunk[0] == 0:
            lines.write({"not": float("nan")})
        elif chunk[0] == 1:
            lines.write({"a set": {1}})
        elif chunk[0] == 2:
            records.write({"a": 1, "c": 2})
        else:
            records.write("ab")


def test_a_record_that_cannot_be_written_is_the_fault_of_its_item(kit: BatchKit):
    run = run_inline(odd)
    assert 4 == run.progress.failed
    errors = [failure.message for failure in run.failures()]
    assert "Out of range float values are not JSON compliant" in errors[0]
    assert "not JSON serializable" in errors[1]
    assert "the columns of the file are ['a', 'b']: got ['a', 'c']" in errors[2]
    assert "the columns of the file are ['a', 'b']: got 'ab'" in errors[3]
    assert {} == _files()
