"""Items that kill the process that works them, and deploys that kill whatever is there."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from batchkit import Adaptive, BatchKit, Chunk, Finish, Run, RunState, span
from batchkit.errors import NothingToSkip
from batchkit.instance import worker_name
from batchkit.queues import LocalQueue
from batchkit.states import FINAL
from batchkit.stopping import Stop, stopped_by_signals
from batchkit.store import Clock
from batchkit.suspicion import Death, Suspicion
from tests.slices.conftest import Ledger, job, write
from tests.waiting import eventually

_ITEMS = 60
_POISON = 27
_CHUNK = 10

_WAYS: dict[str, Callable[[], object]] = {
    "os._exit": lambda: os._exit(0),
    "a segmentation fault": lambda: ctypes.string_at(0),
    "out of memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Host:
    """Works runs in children, and tells of their ends what a queue's worker does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ahead = 0.0
        self._pids: set[int] = set()
        self.kit = self._make_kit()
        self.kit.migrate()

    def _make_kit(self) -> BatchKit:
        return BatchKit(self._url, queue=LocalQueue(), clock=Clock(lambda: self._ahead))

    def start_child(self, run: Run) -> int:
        """Work the run in a child."""
        pid = os.fork()
        if pid == 0:
            # Nothing of pytest must run here, whatever happens.
            with suppress(BaseException):
                faulthandler.disable()
                kit = self._make_kit()
                with Stop() as stop, stopped_by_signals(stop):
                    kit.work_run(run.id, stop=stop)
            os._exit(0)
        self._pids.add(pid)
        return pid

    def wait(self, pid: int) -> None:
        """Wait for a child's end."""
        os.waitpid(pid, 0)
        self._pids.discard(pid)

    def tell(self, pid: int) -> None:
        """Tell of a death as its parent."""
        self.kit.end_leases_of(worker_name(pid), death=Death.CHILD)

    def let_lease_run_out(self) -> None:
        """Let the time of a lease pass."""
        self._ahead += 100.0
        self.kit.recover()

    def work(self, run: Run, *, most: int = 20) -> int:
        """Work the run in one child after the other until it is final or paused; give how many it took."""
        for number in range(most):
            if run.refresh().state in {*FINAL, RunState.PAUSED}:
                return number
            pid = self.start_child(run)
            self.wait(pid)
            self.tell(pid)
        raise AssertionError(f"{run} did not end: {[str(each) for each in run.history()]}")

    def known(self, run: Run) -> Suspicion | None:
        """Read what is known of the first partition."""
        store = self.kit._store  # noqa: SLF001  nothing of this is for users
        with store.database.reading() as tx:
            row = tx.execute(store.leases._statements.read_partition(run.id, 0)).mappings().one()  # noqa: SLF001
        return Suspicion.read(row["suspicion"])

    def end(self) -> None:
        """End what is left."""
        for pid in list(self._pids):
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        self.kit.close()


@pytest.fixture
def host(database_url: str) -> Iterator[Host]:
    """Give a host on each database in turn."""
    made = Host(database_url)
    yield made
    made.end()


@pytest.fixture
def server_host(server_url: str) -> Iterator[Host]:
    """Give a host on each database with a server."""
    made = Host(server_url)
    yield made
    made.end()


@pytest.fixture
def server_done(server_url: str) -> Iterator[Ledger]:
    """Give the ledger there."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


def _poisoned(way: str = "os._exit", **options: Any) -> Any:
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if _POISON in chunk:
            _WAYS[way]()

    return job(span(_ITEMS), work, **{"chunk_size": _CHUNK, **options})


def _check_all_but_poison(run: Run, done: Ledger) -> None:
    assert RunState.SUCCEEDED == run.refresh().state, run.error
    assert [item for item in range(_ITEMS) if item != _POISON] == done.items()
    assert (_ITEMS - 1, 1) == (run.progress.done, run.progress.failed)
    (failure,) = run.failures()
    assert (str(_POISON), "batchkit.errors.WorkerKilled", 3) == (failure.item, failure.error_type, failure.attempts)


@pytest.mark.parametrize("way", _WAYS)
def test_an_item_that_kills_its_workers_is_recorded_and_every_other_is_done_once(host: Host, done: Ledger, way: str):
    run = _poisoned(way, max_failures=1).start()

    # The first finds the place, three find the chunk, three the item, and the last one goes on behind it.
    assert 8 == host.work(run)
    _check_all_but_poison(run, done)
    assert _CHUNK == run.progress.chunk_size
    assert host.known(run) is None


def test_the_size_of_an_adaptive_chunk_comes_back(host: Host, done: Ledger):
    run = _poisoned(chunk_size=Adaptive(minimum=10, maximum=10), max_failures=1).start()
    host.work(run)

    _check_all_but_poison(run, done)
    assert 10 == run.progress.chunk_size


def test_where_no_failure_is_allowed_the_run_fails_and_names_the_item(host: Host, done: Ledger):
    run = _poisoned().start()
    host.work(run)

    assert RunState.FAILED == run.state
    assert run.error is not None
    assert ("batchkit.errors.WorkerKilled", str(_POISON)) == (run.error.type, run.error.item)
    assert list(range(_POISON)) == done.items()
    run.resume(skip=True)
    host.work(run)
    _check_all_but_poison(run, done)


def test_a_killer_that_nobody_saw_kill_pauses_the_run_until_a_person_skips_it(host: Host, done: Ledger):
    run = _poisoned().start()
    for _ in range(7):
        host.wait(host.start_child(run))
        host.let_lease_run_out()

    assert (RunState.PAUSED, 0) == (run.refresh().state, run.progress.failed)
    assert f"behind the cursor {_POISON - 1} " in str(run.waiting_reason)
    run.resume(skip=True)
    host.work(run)
    _check_all_but_poison(run, done)


def test_a_run_that_knows_of_no_killer_skips_nothing(host: Host):
    run = _poisoned().start()
    run.pause()

    with pytest.raises(NothingToSkip, match=run.id):
        run.resume(skip=True)


def test_a_finish_that_kills_its_workers_fails_the_run_which_can_be_resumed(host: Host, done: Ledger):
    kills = [True]

    def finish(finish: Finish) -> int:
        if kills[0]:
            os._exit(1)
        return finish.done

    run = job(span(_ITEMS), write, chunk_size=_CHUNK, finish=finish).start()
    host.work(run)
    assert RunState.FAILED == run.state
    assert run.error is not None
    assert "batchkit.errors.WorkerKilled" == run.error.type

    kills[0] = False
    run.resume()
    host.work(run)
    assert (RunState.SUCCEEDED, _ITEMS) == (run.state, run.result)
    assert list(range(_ITEMS)) == done.items()


def _slow_at_the_third_chunk(is_slow: list[bool]) -> Any:
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        while is_slow[0] and _POISON in chunk:
            signal.pause()  # a signal does not end it: a chunk that takes longer than any grace

    return job(span(_ITEMS), work, chunk_size=_CHUNK)


def _wait_entered(host: Host, run: Run, *, is_marked: bool) -> None:
    def has_entered() -> bool:
        (partition,) = run.partitions()
        known = host.known(run)
        if not partition.is_held or partition.done < _CHUNK * 2:
            return False
        return not is_marked or (known is not None and partition.fence == known.entered)

    eventually(has_entered, within=30, message=lambda: f"{run.partitions()} {host.known(run)}")


def test_a_healthy_job_that_deploys_kill_with_all_around_it_never_loses_an_item(host: Host, done: Ledger):
    is_slow = [True]
    run = _slow_at_the_third_chunk(is_slow).start()
    for number in range(9):
        if run.refresh().state is RunState.PAUSED:
            run.resume()
        pid = host.start_child(run)
        _wait_entered(host, run, is_marked=0 < number < 7)
        os.kill(pid, signal.SIGKILL)
        host.wait(pid)
        host.let_lease_run_out()
        assert [] == list(run.failures())

    is_slow[0] = False
    if run.refresh().state is RunState.PAUSED:
        run.resume()
    host.work(run)
    assert (RunState.SUCCEEDED, _ITEMS, 0) == (run.state, run.progress.done, run.progress.failed)
    assert list(range(_ITEMS)) == done.items()


def test_a_job_whose_deploys_send_sigterm_first_is_neither_paused_nor_failed(server_host: Host, server_done: Ledger):
    is_slow, host = [True], server_host
    run = _slow_at_the_third_chunk(is_slow).start()
    for number in range(9):
        pid = host.start_child(run)
        _wait_entered(host, run, is_marked=number > 0)
        os.kill(pid, signal.SIGTERM)
        if number:
            eventually(lambda: (known := host.known(run)) is not None and known.stopping == known.entered)
        os.kill(pid, signal.SIGKILL)
        host.wait(pid)
        host.tell(pid)
        assert RunState.QUEUED == run.refresh().state

    known = host.known(run)
    assert known is not None
    assert ((), None) == (known.ends, known.until)
    is_slow[0] = False
    host.work(run)
    assert (RunState.SUCCEEDED, _ITEMS, 0) == (run.state, run.progress.done, run.progress.failed)
    assert list(range(_ITEMS)) == server_done.items()


def test_a_worker_that_was_only_stopped_takes_its_count_back(server_host: Host, server_done: Ledger):
    is_slow, host = [True], server_host

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        while is_slow[0] and _POISON in chunk and not chunk.should_stop:
            # Not signal.pause(): a signal that came before it would be waited for in vain.
            time.sleep(0.01)

    run = job(span(_ITEMS), work, chunk_size=_CHUNK).start()
    first = host.start_child(run)
    _wait_entered(host, run, is_marked=False)
    os.kill(first, signal.SIGKILL)
    host.wait(first)
    host.tell(first)

    sleeper = host.start_child(run)
    _wait_entered(host, run, is_marked=True)
    os.kill(sleeper, signal.SIGSTOP)
    host.let_lease_run_out()
    known = host.known(run)
    assert known is not None
    assert 1 == len(known.ends)
    os.kill(sleeper, signal.SIGCONT)
    os.kill(sleeper, signal.SIGTERM)
    host.wait(sleeper)
    known = host.known(run)
    assert known is not None
    assert () == known.ends

    is_slow[0] = False
    host.work(run)
    assert list(range(_ITEMS)) == server_done.items()
