"""Runs cut into partitions: every item once, however many workers there are, and one end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select
from sqlalchemy.orm import Session

from batchkit import (
    BatchKit,
    Chunk,
    Finish,
    Run,
    RunState,
    Throttle,
    csv_rows,
    items,
    json_lines,
    nested,
    pages,
    resumable,
    rows,
    span,
    stream,
)
from batchkit.errors import InvalidJob, InvalidStart
from batchkit.job import JOBS
from batchkit.outputs import csv_file, publish
from batchkit.queues import LocalQueue
from batchkit.slicing import Ending
from batchkit.states import PartitionKind
from batchkit.stopping import Stop
from batchkit.store import Store
from batchkit.throttle import HoldOff
from batchkit.waking import WINDOW
from tests.slices.conftest import Ledger, job, ledger, write
from tests.waiting import eventually

numbers = Table("numbers", MetaData(), Column("id", Integer, primary_key=True))


def store_of(kit: BatchKit) -> Store:
    return kit._store  # noqa: SLF001  there is no public way to a claim


def ranges_of(run: Run) -> list[tuple[object, object, int]]:
    """Give where each partition ends, where it stands, and what it has done."""
    return [(each.until, each.cursor, each.done) for each in run.partitions() if each.kind is PartitionKind.ITEMS]


@pytest.fixture
def queued(database_url: str) -> Iterator[BatchKit]:
    """Give a kit whose runs wait for workers, on each database in turn."""
    made = BatchKit(database_url, queue=LocalQueue())
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def server_kit(server_url: str) -> Iterator[BatchKit]:
    """Give such a kit on each database where several workers write at the same time."""
    made = BatchKit(server_url, queue=LocalQueue())
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def server_done(server_url: str) -> Iterator[Ledger]:
    """Give a ledger there."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


class Workers:
    """Threads that work slices of whatever waits, as worker processes do."""

    def __init__(self, kit: BatchKit, number: int) -> None:
        self._kit = kit
        self._stop = Stop()
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(number)]

    def _work(self) -> None:
        while not self._stop.requested:
            try:
                if self._kit._worker.work_next(queues=None, stop=self._stop) is None:  # noqa: SLF001  without signals
                    self._stop.wait(0.01)
            except Exception as error:  # noqa: BLE001  the test tells of it
                self.errors.append(error)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.request("the test is over")
        for thread in self._threads:
            thread.join(30)


@contextmanager
def workers(kit: BatchKit, number: int) -> Iterator[Workers]:
    made = Workers(kit, number)
    made.start()
    try:
        yield made
    finally:
        made.end()
    assert [] == made.errors


def wait_end(run: Run) -> RunState:
    eventually(lambda: run.refresh().has_ended, within=60, message=lambda: f"{run}: {run.partitions()}")
    return run.state


# The way it should be


def test_every_item_is_done_once_and_each_partition_has_its_share(kit: BatchKit, done: Ledger):
    run = job(span(0, 1050), write, chunk_size=100, partitions=4).start()

    assert RunState.SUCCEEDED == run.state
    assert list(range(1050)) == done.items()
    assert (1050, 1050, 100.0) == (run.progress.done, run.progress.total, run.progress.percent)
    assert [(261, 262), (524, 263), (786, 262), (1049, 263)] == [(until, n) for until, _, n in ranges_of(run)]
    assert all(until == cursor for until, cursor, _ in ranges_of(run))


def test_how_many_there_are_is_for_the_start_to_say(kit: BatchKit, done: Ledger):
    made = job(span(100), write, partitions=4)

    assert 4 == len(made.start().partitions())
    assert 7 == len(made.using(partitions=7).start().partitions())
    assert 7 == len(made.using(partitions=7).start().rerun().partitions())
    assert 1 == len(made.using(partitions=1).start().partitions())
    assert 500 == done.count()


def test_small_and_empty_sources_have_fewer(kit: BatchKit, done: Ledger):
    assert 3 == len(job(items([1, 2, 3]), write, partitions=8).start().partitions())
    empty = job(items([]), write, partitions=8).start()
    assert (RunState.SUCCEEDED, 1, 0) == (empty.state, len(empty.partitions()), empty.progress.done)


def test_rows_are_worked_to_where_the_table_ended_when_the_run_was_planned(kit: BatchKit, done: Ledger):
    numbers.create(done.engine)
    with done.engine.begin() as tx:
        tx.execute(insert(numbers), [{"id": n * n} for n in range(1, 301)])

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.partition == 0 and chunk.number == 1:
            chunk.connection.execute(insert(numbers), [{"id": 10**6}, {"id": 2}])

    run = job(rows(select(numbers.c.id), key=numbers.c.id), work, chunk_size=20, partitions=5).start()
    assert [n * n for n in range(1, 301)] == done.items()
    assert [60] * 5 == [number for _, _, number in ranges_of(run)]


@pytest.mark.parametrize("partitions", [1, 3])
def test_files_and_sources_in_sources_are_worked_whole(kit: BatchKit, done: Ledger, tmp_path: Path, partitions: int):
    (tmp_path / "x.csv").write_text("n,text\n" + "".join(f'{n},"line\nline"\n' for n in range(100)))
    (tmp_path / "x.jsonl").write_text("".join(f"{n}\n" for n in range(100, 200)))

    def work_records(chunk: Chunk[dict[str, str]]) -> None:
        chunk.connection.execute(insert(ledger), [{"item": int(record["n"])} for record in chunk])

    def work_pairs(chunk: Chunk[Any]) -> None:
        chunk.connection.execute(insert(ledger), [{"item": 200 + outer * 10 + inner} for outer, inner in chunk])

    options: dict[str, Any] = {"chunk_size": 7, "partitions": partitions}
    runs = [
        job(csv_rows(tmp_path / "x.csv"), work_records, **options).start(),
        job(json_lines(tmp_path / "x.jsonl"), write, **options).start(),
        job(nested(span(10), lambda _: span(10)), work_pairs, **options).start(),
    ]
    assert [RunState.SUCCEEDED] * 3 == [run.state for run in runs], [run.error for run in runs]
    assert [partitions] * 3 == [len(run.partitions()) for run in runs]
    assert list(range(300)) == done.items()


def test_what_each_partition_carries_comes_to_finish_once_and_in_order(kit: BatchKit, done: Ledger):
    calls: list[list[object]] = []

    def work(chunk: Chunk[int]) -> None:
        chunk.carry["sum"] = int(str(chunk.carry.get("sum", 0))) + sum(chunk)

    def finish(end: Finish) -> object:
        calls.append([carry["sum"] for carry in end.carries])
        return sum(int(str(carry["sum"])) for carry in end.carries)

    run = job(span(100), work, chunk_size=7, partitions=4, finish=finish).start()
    assert (RunState.SUCCEEDED, 4950) == (run.state, run.result)
    assert [[sum(range(begin, begin + 25)) for begin in range(0, 100, 25)]] == calls


def test_keys_are_those_that_one_partition_would_give(queued: BatchKit, done: Ledger):
    keys: dict[tuple[str, int], str] = {}

    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            keys[chunk.run_id, item] = chunk.key(item)

    made = job(span(40), work, chunk_size=7)
    one, four = (made.using(partitions=partitions).start() for partitions in (1, 4))
    for run in (one, four):
        assert RunState.SUCCEEDED == _worked_here(queued, run)
    without_run = [[keys[run.id, item].removeprefix(run.id) for item in range(40)] for run in (one, four)]
    assert without_run[0] == without_run[1]
    assert 40 == len(set(without_run[0]))


def _worked_here(kit: BatchKit, run: Run) -> RunState:
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    return run.refresh().state


def test_parts_of_an_exported_file_are_put_together_in_order(kit: BatchKit, done: Ledger, tmp_path: Path):
    place = tmp_path / "out.csv"

    def work(chunk: Chunk[int]) -> None:
        with csv_file(chunk, place, columns=["n"]) as out:
            for item in chunk:
                out.write([item])

    run = job(span(500), work, chunk_size=30, partitions=4, finish=lambda end: publish(end, place)).start()
    assert RunState.SUCCEEDED == run.state, run.error
    assert ["n", *map(str, range(500))] == place.read_text().split()


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_each_delivery_has_partitions(kit: BatchKit, done: Ledger, delivery: str):
    run = job(span(30), write, chunk_size=4, partitions=3, delivery=delivery).start()
    assert (RunState.SUCCEEDED, 3) == (run.state, len(run.partitions()))
    assert list(range(30)) == done.items()


# How it is started


def test_a_run_with_a_limit_has_one_partition(kit: BatchKit, done: Ledger):
    made = job(span(100), write, partitions=4)

    run = made.using(limit=10).start()
    assert (1, list(range(10))) == (len(run.partitions()), done.items())
    with pytest.raises(InvalidStart, match="leave out limit or partitions"):
        made.using(limit=10, partitions=2)


def test_a_run_that_begins_behind_a_cursor_is_cut_behind_it(kit: BatchKit, done: Ledger):
    run = job(span(100), write, partitions=4).using(after=19).start()
    assert list(range(20, 100)) == done.items()
    assert ([20] * 4, 80) == ([number for _, _, number in ranges_of(run)], run.progress.total)


def test_a_dry_run_keeps_nothing_of_any_partition(kit: BatchKit, done: Ledger):
    run = job(span(100), write, chunk_size=10, partitions=4).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, 100, []) == (run.state, run.progress.done, done.items())


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, 10_001, "4"])
def test_what_is_no_number_of_partitions_or_workers_is_refused(kit: BatchKit, wrong: Any):
    made = job(span(10), write)
    with pytest.raises(InvalidJob, match="partitions is the number of ranges"):
        job(span(10), write, partitions=wrong)
    with pytest.raises(InvalidStart, match="partitions is a number of ranges"):
        made.using(partitions=wrong)
    if wrong != 10_001:
        with pytest.raises(InvalidJob, match="max_workers is the number of workers"):
            job(span(10), write, max_workers=wrong)
        with pytest.raises(InvalidStart, match="max_workers is a number of workers"):
            made.using(max_workers=wrong)


class Plain:
    """A source of a user's that reads and no more."""

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[int, int]]:
        return []


class Wrong(Plain):
    """A source that is cut wrongly."""

    def __init__(self, cuts: list[int]) -> None:
        self._cuts = cuts

    def split(self, parts: int, session: Session) -> list[int]:
        return self._cuts

    def until(self, upper: int) -> Wrong:
        return self


@pytest.mark.parametrize(
    "source", [stream(lambda: iter([1])), pages(lambda _: ([1], None)), Plain()], ids=["stream", "pages", "own"]
)
def test_what_cannot_be_cut_is_refused_with_what_can(kit: BatchKit, source: Any):
    with pytest.raises(InvalidJob, match=r"cannot be cut into ranges: rows, items, span"):
        job(source, write, partitions=2)

    run = job(lambda: source, write, partitions=2).start()
    assert RunState.FAILED == run.state
    assert "cannot be cut into ranges: rows, items, span" in str(run.error)


def test_a_resumable_cannot_be_cut(kit: BatchKit):
    @resumable(name="tests.cannot-be-cut")
    def crawl(steps: Any) -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidStart, match="is a resumable"):
        crawl.using(partitions=2).start()


@pytest.mark.parametrize(("cuts", "problem"), [([1, 2, 3], "gave 3 cursors"), ([1, 1], "the same cursor twice")])
def test_a_source_that_is_cut_wrongly_fails_the_run(kit: BatchKit, cuts: list[int], problem: str):
    run = job(Wrong(cuts), write, partitions=3).start()
    assert RunState.FAILED == run.state
    assert problem in str(run.error)


def test_a_thousand_partitions_are_written_at_once(queued: BatchKit, done: Ledger):
    run = job(span(10_000), write, chunk_size=10, partitions=1000).start()
    with Stop() as stop:
        queued._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  one slice, and no more

    assert (1000, 10, 10_000) == (len(run.partitions()), run.refresh().progress.done, run.progress.total)
    assert {10 * n - 1 for n in range(1, 1001)} == {until for until, _, _ in ranges_of(run)}


# Several workers


def test_partitions_are_worked_at_the_same_time(server_kit: BatchKit, server_done: Ledger):
    together = threading.Barrier(4, timeout=60)

    def work(chunk: Chunk[int]) -> None:
        if chunk.number == 1:
            together.wait()
        write(chunk)

    run = job(span(400), work, chunk_size=10, partitions=4).start()
    with workers(server_kit, 4):
        assert RunState.SUCCEEDED == wait_end(run)
    assert list(range(400)) == server_done.items()
    assert (400, 400) == (run.progress.done, run.progress.total)


def test_a_run_has_no_more_workers_than_it_may(server_kit: BatchKit, server_done: Ledger):
    lock, now, most = threading.Lock(), [0], [0]

    def work(chunk: Chunk[int]) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        write(chunk)
        with lock:
            now[0] -= 1

    run = job(span(600), work, chunk_size=5, partitions=12, max_workers=2).start()
    with workers(server_kit, 5):
        assert RunState.SUCCEEDED == wait_end(run)
    assert 2 == run.max_workers
    assert most[0] <= 2
    assert list(range(600)) == server_done.items()


def test_the_cap_holds_for_claims_of_any_kind(queued: BatchKit, done: Ledger):
    run = job(span(100), write, partitions=4, max_workers=2).start()
    leases = store_of(queued).leases
    with Stop() as stop:
        queued._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  it plans the run
    held = leases.claim(run.id, 1, worker="one", seconds=60)
    assert held is not None
    assert leases.claim(run.id, 2, worker="two", seconds=60) is not None

    assert leases.claim(run.id, 3, worker="three", seconds=60) is None
    assert [] == leases.claimable_in(run.id)
    assert [] == leases.claimable(jobs=[run.job], queues=None)
    leases.release(held, reason="the test")
    assert leases.claim(run.id, 3, worker="three", seconds=60) is not None


def test_a_run_of_many_partitions_lets_a_small_one_go_next(queued: BatchKit, done: Ledger):
    large = job(span(1000), write, chunk_size=1, partitions=200, slice_time=0.000001).start()
    order: list[str] = []

    def note(chunk: Chunk[int]) -> None:
        order.append("small")

    with Stop() as stop:
        for _ in range(3):
            queued._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  one slice, and no more
        small = job(span(3), note, chunk_size=1, slice_time=0.000001).start()
        for _ in range(10):
            queued._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  the same
    # Every other slice was the small run's.
    assert RunState.SUCCEEDED == small.refresh().state
    assert large.refresh().progress.done >= 6


def test_two_runs_of_many_partitions_take_turns(queued: BatchKit, done: Ledger):
    runs = [job(span(200), write, chunk_size=1, partitions=100, slice_time=0.000001).start() for _ in range(2)]
    with Stop() as stop:
        for _ in range(20):
            queued._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  one slice, and no more
    assert [10, 10] == [run.refresh().progress.done for run in runs]


def _held_in_the_middle(kit: BatchKit, partitions: int) -> tuple[Any, threading.Event, Callable[[Chunk[int]], None]]:
    together, go = threading.Barrier(partitions + 1, timeout=60), threading.Event()

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2 and not go.is_set():
            together.wait()
            assert go.wait(60)

    return together, go, work


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_each_worker_sees_a_request_and_the_last_one_settles_it(server_kit: BatchKit, server_done: Ledger, wish: str):
    together, go, work = _held_in_the_middle(server_kit, 3)
    run = job(span(300), work, chunk_size=10, partitions=3).start()
    with workers(server_kit, 3):
        together.wait()
        assert 3 == run.refresh().progress.workers
        getattr(run, wish)()
        assert (RunState.RUNNING, wish) == (run.state, str(run.requested))
        go.set()
        wanted = RunState.PAUSED if wish == "pause" else RunState.CANCELLED
        eventually(lambda: run.refresh().state is wanted, within=30, message=lambda: str(run.history()))
        # The chunk in flight of each was finished, and no other was begun.
        assert (60, 0) == (run.progress.done, run.progress.workers)
        if wish == "pause":
            run.resume()
            assert RunState.SUCCEEDED == wait_end(run)
            assert list(range(300)) == server_done.items()
        else:
            assert 60 == server_done.count()


def test_an_error_in_one_partition_stops_the_others_at_their_boundary(server_kit: BatchKit, server_done: Ledger):
    together, failed = threading.Barrier(3, timeout=60), threading.Event()
    is_broken = [True]

    def work(chunk: Chunk[int]) -> None:
        if is_broken[0] and chunk.number == 2:
            together.wait()
            if 30 in chunk or chunk.partition == 0:
                message = "broken"
                raise ValueError(message)
            assert failed.wait(60)
        write(chunk)

    made = job(span(90), work, chunk_size=1, partitions=3)
    run = made.start()
    with workers(server_kit, 3):
        eventually(lambda: run.refresh().state is RunState.FAILED, within=60, message=lambda: str(run.history()))
        failed.set()
        eventually(lambda: not run.refresh().progress.workers, within=60, message=lambda: str(run.partitions()))
        assert (RunState.FAILED, 5) == (run.state, run.progress.done)
        assert run.error is not None
        assert (0, "broken") == (run.error.partition, run.error.message)
        is_broken[0] = False
        run.resume()
        assert RunState.SUCCEEDED == wait_end(run)
    assert list(range(90)) == server_done.items()
    assert 1 == sum("broken" in each.reason for each in run.history())


def test_finish_is_called_once_whoever_ends_last(server_kit: BatchKit, server_done: Ledger):
    calls: list[int] = []

    def finish(end: Finish) -> int:
        calls.append(end.done)
        return end.done

    runs = [job(span(64), write, chunk_size=1, partitions=16, finish=finish).start() for _ in range(4)]
    with workers(server_kit, 6):
        assert [RunState.SUCCEEDED] * 4 == [wait_end(run) for run in runs]
    assert [64] * 4 == calls
    assert [64] * 4 == [run.result for run in runs]
    assert 4 * 64 == server_done.count()


@pytest.mark.parametrize("allowed", [5, 0.05])
def test_failures_of_all_partitions_together_are_no_more_than_allowed(
    server_kit: BatchKit, server_done: Ledger, allowed: float
):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if item % 3 == 0:
                chunk.fail(item, "a third of them fail")

    run = job(span(1200), work, chunk_size=1, partitions=6, max_failures=allowed).start()
    with workers(server_kit, 6):
        assert RunState.FAILED == wait_end(run)
        eventually(lambda: not run.refresh().progress.workers, within=60, message=lambda: str(run.partitions()))
    if allowed == 5:
        assert 5 == run.progress.failed == len(run.failures())
    else:
        assert len(run.failures()) == run.progress.failed
        assert run.progress.failed <= max(100, allowed * run.progress.passed + 1)


def test_failures_of_several_partitions_are_tried_again_by_one(kit: BatchKit, done: Ledger):
    is_broken = [True]

    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if is_broken[0] and item % 25 == 0:
                chunk.fail(item, "broken")
            else:
                chunk.connection.execute(insert(ledger), [{"item": item}])

    run = job(span(100), work, chunk_size=7, partitions=4, max_failures=10).start()
    assert [(0, None), (1, "24"), (2, "49"), (3, "74")] == [(each.partition, each.after) for each in run.failures()]
    is_broken[0] = False
    again = run.retry_failures()
    assert (RunState.SUCCEEDED, 4, 1) == (again.state, again.progress.done, len(again.partitions()))
    assert list(range(100)) == done.items()


# Throttles


def test_a_hold_holds_all_partitions_off_at_once(queued: BatchKit, done: Ledger):
    asked = []

    def hold() -> HoldOff | None:
        asked.append(1)
        return HoldOff(60, "not now")

    run = job(span(100), write, partitions=10, throttle=Throttle(hold=hold)).start()
    with Stop() as stop:
        outcomes = [queued._worker.work_next(queues=None, stop=stop) for _ in range(5)]  # noqa: SLF001  one slice each
    assert [True, False, False, False, False] == [outcome is not None for outcome in outcomes]
    assert (1, RunState.QUEUED, 0) == (len(asked), run.refresh().state, run.progress.done)
    assert "not now" in str(run.waiting_reason)


def test_a_rate_is_that_of_all_partitions_together(server_kit: BatchKit, server_done: Ledger):
    run = job(span(90), write, chunk_size=10, partitions=3, throttle=Throttle(rate=60)).start()
    with workers(server_kit, 3):
        assert RunState.SUCCEEDED == wait_end(run)
    assert list(range(90)) == server_done.items()
    # Nine chunks; the first begins at once and each of the others after the time of those before it.
    assert run.progress.elapsed.total_seconds() >= 8 * 10 / 60


# Waking workers up


def test_few_wake_ups_are_under_way_at_a_time_and_each_claim_has_the_next_sent(queued: BatchKit, done: Ledger):
    run = job(span(100), write, chunk_size=1, partitions=100).start()
    store = store_of(queued)
    first = store.wake_ups.take_shares(run.id, window=WINDOW)
    assert [0] == [each.partition for each in first]
    with Stop() as stop:
        queued._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  it plans the run

    sent = store.wake_ups.take_shares(run.id, window=WINDOW)
    assert list(range(1, WINDOW + 1)) == [each.partition for each in sent]
    assert [] == store.wake_ups.take_shares(run.id, window=WINDOW)
    claimed = store.leases.claim(run.id, 1, worker="one", seconds=60, wake_no=sent[0].number)
    assert claimed is not None
    assert [WINDOW + 1] == [each.partition for each in store.wake_ups.take_shares(run.id, window=WINDOW)]
    # What is given back waits for its turn, behind those that nobody has begun.
    store.leases.release(claimed, reason="the test")
    assert [] == store.wake_ups.take_shares(run.id, window=WINDOW)


def test_no_more_wake_ups_are_sent_than_workers_may_come(queued: BatchKit, done: Ledger):
    run = job(span(100), write, chunk_size=1, partitions=100, max_workers=2).start()
    store = store_of(queued)
    with Stop() as stop:
        queued._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  it plans the run

    sent = store.wake_ups.take_shares(run.id, window=WINDOW)
    assert 2 == len(sent)
    claimed = [store.leases.claim(run.id, each.partition, worker="w", seconds=60) for each in sent]
    assert None not in claimed
    assert [] == store.wake_ups.take_shares(run.id, window=WINDOW)
    assert [] == store.wake_ups.short_of_workers(limit=10)


def test_an_interrupted_run_goes_on_in_all_its_partitions(queued: BatchKit, done: Ledger):
    with Stop() as stop:

        def work(chunk: Chunk[int]) -> None:
            write(chunk)
            if chunk.partition == 1:
                stop.request("the test")

        run = job(span(30), work, chunk_size=5, partitions=3).start()
        queued.work_run(run.id, stop=stop)
    assert (RunState.QUEUED, 15) == (run.refresh().state, run.progress.done)
    assert RunState.SUCCEEDED == _worked_here(queued, run)
    assert list(range(30)) == done.items()


def test_a_worker_whose_code_does_not_fit_declines_one_partition_and_no_others(queued: BatchKit, done: Ledger):
    made = job(span(100), write, chunk_size=1, partitions=50, slice_time=0.000001)
    run = made.start()
    with Stop() as stop:
        queued._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  one slice, and no more
        JOBS._jobs[made.name] = replace(JOBS[made.name], make_source=lambda: items([1, 2, 3]))  # noqa: SLF001  a deploy
        outcomes = [queued._worker.work_next(queues=None, stop=stop) for _ in range(5)]  # noqa: SLF001  the same
    assert [Ending.DECLINED] == [outcome.ending for outcome in outcomes if outcome is not None]
    assert (RunState.QUEUED, 1) == (run.refresh().state, run.progress.done)
    assert "kind" in str(run.waiting_reason)
