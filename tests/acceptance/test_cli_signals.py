"""Signals to `batchkit run` and to `batchkit work --processes 2`: whatever ends, every item is done exactly once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from batchkit import BatchKit, Run, RunState
from tests.slices.conftest import let_leases_run_out
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 600
CHUNK_SIZE = 10
SHOP = """\
import os
import time

from sqlalchemy import text

from batchkit import BatchKit, Chunk, batched, span

kit = BatchKit(os.environ["SHOP_URL"])


def numbers(seconds: float):
    return span(0, 600)


def work(chunk: Chunk[int], seconds: float) -> None:
    chunk.connection.execute(text("INSERT INTO counted (item) VALUES (:item)"), [{"item": item} for item in chunk])
    print("the chunk is in flight", flush=True)
    time.sleep(seconds)


@batched(numbers, chunk_size=10, lease=2)
def count(chunk: Chunk[int], seconds: float) -> None:
    work(chunk, seconds)


@batched(numbers, chunk_size=10, lease=600)
def count_leased_for_long(chunk: Chunk[int], seconds: float) -> None:
    work(chunk, seconds)
"""


class Shop:
    """A folder with an app, its database, and the command lines that run there."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "shop.py").write_text(SHOP)
        self.kit = BatchKit(url)
        self.kit.migrate()
        self._engine = create_engine(url)
        with self._engine.begin() as tx:
            tx.execute(text("CREATE TABLE counted (item INTEGER NOT NULL)"))

    def call(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line."""
        return self._start([sys.executable, "-m", "batchkit", "-A", "shop:kit", *arguments])

    def type_in(self, line: str) -> subprocess.Popen[str]:
        """Start a command line as a shell does."""
        return self._start(["sh", "-c", line])

    def log(self, process: subprocess.Popen[str]) -> str:
        """Give what a command line wrote so far."""
        return self._log_of(self._processes.index(process)).read_text()

    def start_run(self, *, seconds: float = 0.02) -> Run:
        """Start a run for the workers."""
        starting = self.call("start", "count", f"seconds={seconds}")
        assert 0 == starting.wait(30), self.log(starting)
        return self.newest()

    def newest(self) -> Run:
        """Give the run that was started last."""
        return self.kit.runs(limit=1)[0]

    def counted(self) -> list[int]:
        """Give the items that were done, each as often as it was."""
        with self._engine.connect() as tx:
            return sorted(tx.execute(text("SELECT item FROM counted")).scalars())

    def close(self) -> None:
        """End what is still running, and only that."""
        for process in self._processes:
            for pid in worker_pids(self.log(process)):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            if process.poll() is None:
                process.kill()
            process.wait(30)
        self.kit.close()
        self._engine.dispose()

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        ours = {"SHOP_URL": self._url, "PYTHONPATH": str(ROOT), "BATCHKIT_APP": ""}
        with self._log_of(len(self._processes)).open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, **ours},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._processes.append(process)
        return process

    def _log_of(self, number: int) -> Path:
        return self._folder / f"{number}.log"


@pytest.fixture
def shop(tmp_path: Path, database_url: str) -> Iterator[Shop]:
    made = Shop(tmp_path, database_url)
    yield made
    made.close()


def worker_pids(log: str) -> list[int]:
    """Give the children that a `work --processes` has started."""
    return [int(pid) for pid in re.findall(r"a worker process started .*pid=(\d+)", log)]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def soon(condition: Callable[[], object], shop: Shop, process: subprocess.Popen[str]) -> None:
    eventually(condition, within=30, message=lambda: f"{shop.newest()}: {shop.log(process)}")


def wait_until_it_works(shop: Shop, process: subprocess.Popen[str], *, chunks: int = 2) -> None:
    soon(lambda: len(shop.counted()) >= chunks * CHUNK_SIZE, shop, process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_by_a_signal_ends_when_its_resume_command_is_typed_in(
    shop: Shop, number: signal.Signals
):
    running = shop.call("run", "count", "seconds=0.02")
    wait_until_it_works(shop, running)

    running.send_signal(number)

    assert 75 == running.wait(30), shop.log(running)
    log = shop.log(running)
    assert "stopping after this chunk" in log
    assert "Traceback" not in log
    done = len(shop.counted())
    assert (RunState.QUEUED, done) == (shop.newest().state, shop.newest().progress.done)
    assert done < ITEMS

    resuming = shop.type_in(log.splitlines()[-1])

    assert 0 == resuming.wait(60), shop.log(resuming)
    assert list(range(ITEMS)) == shop.counted()


def test_a_second_signal_rolls_the_chunk_in_flight_back(shop: Shop):
    running = shop.call("run", "count", "seconds=20")
    soon(lambda: "the chunk is in flight" in shop.log(running), shop, running)
    running.send_signal(signal.SIGINT)
    soon(lambda: "stopping after this chunk" in shop.log(running), shop, running)

    running.send_signal(signal.SIGINT)

    assert 75 == running.wait(15), shop.log(running)
    assert [] == shop.counted()
    assert RunState.QUEUED is shop.newest().state
    assert "Traceback" not in shop.log(running)


def test_a_run_whose_process_was_killed_is_taken_over_by_resume(shop: Shop):
    running = shop.call("run", "count_leased_for_long", "seconds=0.02")
    wait_until_it_works(shop, running)
    running.kill()
    running.wait(30)

    resuming = shop.call("resume", shop.newest().id)
    soon(lambda: "waiting for worker" in shop.log(resuming), shop, resuming)
    let_leases_run_out(shop.kit, shop.newest())

    assert 0 == resuming.wait(60), shop.log(resuming)
    assert list(range(ITEMS)) == shop.counted()


def test_a_killed_worker_process_is_replaced(shop: Shop):
    run = shop.start_run()
    working = shop.call("work", "--processes", "2")
    wait_until_it_works(shop, working)
    first, second = worker_pids(shop.log(working))

    # Whichever has the run; it is taken over by the other one or by the new one.
    (holder,) = [int(str(each.worker).rpartition(":")[2]) for each in run.partitions() if each.is_held] or [first]
    os.kill(holder, signal.SIGKILL)

    soon(lambda: len(worker_pids(shop.log(working))) == 3, shop, working)
    assert holder in {first, second}
    assert f"pid={holder}" in shop.log(working)
    assert "killed_by=SIGKILL" in shop.log(working)
    soon(lambda: run.refresh().state is RunState.SUCCEEDED, shop, working)
    assert list(range(ITEMS)) == shop.counted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_all_workers_after_the_chunk_in_flight(shop: Shop, number: signal.Signals):
    run = shop.start_run(seconds=0.1)
    working = shop.call("work", "--processes", "2")
    wait_until_it_works(shop, working)

    working.send_signal(number)

    assert 0 == working.wait(30), shop.log(working)
    assert not any(is_alive(pid) for pid in worker_pids(shop.log(working)))
    assert RunState.QUEUED is run.refresh().state
    # After the chunk, not by rolling it back.
    assert "interrupted: SIGTERM" == run.history()[-1].reason
    assert len(shop.counted()) == run.progress.done


def test_worker_processes_end_when_their_parent_is_killed(shop: Shop):
    run = shop.start_run(seconds=0.1)
    working = shop.call("work", "--processes", "2")
    wait_until_it_works(shop, working)
    pids = worker_pids(shop.log(working))
    assert 2 == len(pids)

    working.kill()

    soon(lambda: not any(is_alive(pid) for pid in pids), shop, working)
    assert RunState.QUEUED is run.refresh().state
    assert "interrupted: SIGTERM" == run.history()[-1].reason
    assert run.progress.done == len(shop.counted())
