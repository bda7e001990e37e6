"""Partitions that are cut while they are worked: every item once and in order, and nobody idle while there is work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Column, DateTime, Integer, MetaData, String, Table, insert, select
from sqlalchemy.orm import Session

from batchkit import BatchKit, Chunk, Finish, Run, RunState, Source, csv_rows, items, json_lines, nested, rows, span
from batchkit.errors import DatabaseUnavailable
from batchkit.model import Lease, Partition
from batchkit.outputs import csv_file, publish
from batchkit.queues import LocalQueue
from batchkit.slicing import stealing
from batchkit.sources import parquet_rows
from batchkit.states import PartitionKind, PartitionState
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, ledger, write
from tests.slices.test_partitions import store_of, wait_end, workers

_WORKERS = 4


@pytest.fixture
def queued(database_url: str) -> Iterator[BatchKit]:
    """Give a kit whose runs wait for workers, on each database in turn."""
    made = BatchKit(database_url, queue=LocalQueue())
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have even what takes a moment cut."""
    monkeypatch.setattr(stealing, "_LEAST_SECONDS", 1e-6)


numbers = Table("numbers", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
pairs = Table(
    "pairs",
    MetaData(),
    Column("a", Integer, primary_key=True, autoincrement=False),
    Column("b", Integer, primary_key=True, autoincrement=False),
)
named = Table("named", MetaData(), Column("name", String(20), primary_key=True), Column("number", Integer))
moments = Table("moments", MetaData(), Column("at", DateTime, primary_key=True), Column("number", Integer))
_ITEMS = 120


def _fill(done: Ledger, table: Table, records: list[dict[str, Any]]) -> None:
    table.create(done.engine)
    with done.engine.begin() as tx:
        tx.execute(insert(table), records)


def _rows(done: Ledger, _: Path) -> Source[Any]:
    _fill(done, numbers, [{"id": number} for number in range(_ITEMS)])
    return rows(select(numbers.c.id), key=numbers.c.id)


def _rows_down(done: Ledger, _: Path) -> Source[Any]:
    _fill(done, numbers, [{"id": _ITEMS - number - 1} for number in range(_ITEMS)])
    return rows(select((_ITEMS - 1 - numbers.c.id).label("n")), key=numbers.c.id.desc())


def _rows_that_are_followed(done: Ledger, _: Path) -> Source[Any]:
    _fill(done, numbers, [{"id": number} for number in range(_ITEMS)])
    return rows(select(numbers.c.id), key=numbers.c.id, follow=True)


def _rows_by_two(done: Ledger, _: Path) -> Source[Any]:
    _fill(done, pairs, [{"a": number // 90, "b": number} for number in range(_ITEMS)])
    return rows(select(pairs.c.b), key=(pairs.c.a, pairs.c.b))


def _rows_by_name(done: Ledger, _: Path) -> Source[Any]:
    _fill(done, named, [{"name": f"item {number:05}", "number": number} for number in range(_ITEMS)])
    return rows(select(named.c.number), key=named.c.name)


def _rows_by_moment(done: Ledger, _: Path) -> Source[Any]:
    begin = datetime(2026, 1, 1)  # noqa: DTZ001  a column without a zone
    _fill(done, moments, [{"at": begin + timedelta(minutes=n), "number": n} for n in range(_ITEMS)])
    return rows(select(moments.c.number), key=moments.c.at)


def _csv(_: Ledger, folder: Path) -> Source[Any]:
    (folder / "x.csv").write_text("n\n" + "".join(f"{number}\n" for number in range(_ITEMS)))
    return csv_rows(folder / "x.csv")


def _quoted_csv(_: Ledger, folder: Path) -> Source[Any]:
    (folder / "x.csv").write_text("n,text\n" + "".join(f'{number},"a\nb"\n' for number in range(_ITEMS)))
    return csv_rows(folder / "x.csv")


def _lines(_: Ledger, folder: Path) -> Source[Any]:
    (folder / "x.jsonl").write_text("".join(f"{number}\n" for number in range(_ITEMS)))
    return json_lines(folder / "x.jsonl")


def _parquet(_: Ledger, folder: Path) -> Source[Any]:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"n": list(range(_ITEMS))}), folder / "x.parquet", row_group_size=5)
    return parquet_rows(folder / "x.parquet")


SOURCES: dict[str, Callable[[Ledger, Path], Source[Any]]] = {
    "span": lambda _, __: span(_ITEMS),
    "items": lambda _, __: items(list(range(_ITEMS))),
    "rows": _rows,
    "rows-down": _rows_down,
    "rows-followed": _rows_that_are_followed,
    "rows-by-two": _rows_by_two,
    "rows-by-name": _rows_by_name,
    "rows-by-moment": _rows_by_moment,
    "csv": _csv,
    "quoted-csv": _quoted_csv,
    "json-lines": _lines,
    "parquet": _parquet,
    "nested": lambda _, __: nested(span(_ITEMS // 4), lambda _: span(4)),
}


def _number(item: Any) -> int:
    if isinstance(item, dict):
        return int(item["n"])
    return item[0] * 4 + item[1] if isinstance(item, tuple) else int(item)


def _note(chunk: Chunk[Any]) -> None:
    """Write down what is done, and in which order each partition has done it."""
    done = [_number(item) for item in chunk]
    before = chunk.carry.get("done", [])
    assert isinstance(before, list)
    chunk.carry["done"] = [*before, *done]
    chunk.connection.execute(insert(ledger), [{"item": item} for item in done])


def _in_order(end: Finish) -> object:
    return [item for carry in end.carries for item in cast("list[int]", carry.get("done", []))]


def _work(kit: BatchKit, run: Run, number: int, *, watch: Callable[[Lease], None] = lambda _: None) -> None:
    with Stop() as stop:
        kit._worker.work_partition(run.id, number, stop=stop, watch=watch)  # noqa: SLF001  one slice, and no more


def _work_first_while_others_end(kit: BatchKit, run: Run, *, others: int = 3) -> list[int]:
    """Work the first partition, and after its second chunk the others to their ends; give where it stood then."""
    seen: list[int] = []

    def watch(lease: Lease) -> None:
        if lease.seq == 2:
            seen.append(lease.done)
            for number in range(1, 1 + others):
                _work(kit, run, number)

    _work(kit, run, 0, watch=watch)
    return seen


def _finish(kit: BatchKit, run: Run) -> RunState:
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    return run.refresh().state


def _ranges(run: Run) -> list[Partition]:
    return [each for each in run.partitions() if each.kind is PartitionKind.ITEMS]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_left_of_a_range_of_any_source_is_cut_for_those_that_have_ended(
    queued: BatchKit, done: Ledger, tmp_path: Path, source: str
):
    run = job(SOURCES[source](done, tmp_path), _note, chunk_size=3, partitions=4, finish=_in_order).start()
    assert [6] == _work_first_while_others_end(queued, run)

    # Nobody has come for what was cut off.
    waiting = [each for each in _ranges(run) if each.state is PartitionState.OPEN]
    assert len(waiting) == len(_ranges(run)) - 4
    assert 1 <= len(waiting) <= 3
    assert (None, 0) not in {(each.cut_from, each.done) for each in waiting}
    assert 0 == sum(each.done for each in waiting)

    assert RunState.SUCCEEDED == _finish(queued, run), run.error
    assert list(range(_ITEMS)) == done.items()
    assert list(range(_ITEMS)) == run.result
    assert _ITEMS == run.progress.done
    assert all(each.done for each in _ranges(run))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once", "at-most-once"])
def test_no_item_is_tried_twice_for_a_cut(queued: BatchKit, done: Ledger, delivery: str):
    tried: Counter[int] = Counter()

    def work(chunk: Chunk[int]) -> None:
        tried.update(chunk)
        assert 1 == chunk.attempt
        _note(chunk)

    run = job(span(_ITEMS), work, chunk_size=3, partitions=4, delivery=delivery).start()
    _work_first_while_others_end(queued, run)
    assert len(_ranges(run)) > 4
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert dict.fromkeys(range(_ITEMS), 1) == tried
    assert (list(range(_ITEMS)), 0, 0) == (done.items(), run.retries, run.progress.in_doubt)


@pytest.mark.usefixtures("tiny")
def test_a_file_is_the_same_to_the_byte_however_often_its_run_was_cut(queued: BatchKit, done: Ledger, tmp_path: Path):
    def exported(name: str) -> tuple[Run, Path]:
        place = tmp_path / name

        def work(chunk: Chunk[int]) -> None:
            with csv_file(chunk, place, columns=["n"]) as out:
                for item in chunk:
                    out.write([item])

        made = job(span(_ITEMS), work, chunk_size=3, partitions=4, finish=lambda end: publish(end, place))
        return made.start(), place

    uncut, plain = exported("uncut.csv")
    assert RunState.SUCCEEDED == _finish(queued, uncut)
    run, place = exported("cut.csv")
    _work_first_while_others_end(queued, run)
    cut_off = [each.number for each in _ranges(run) if each.cut_from is not None]
    # The one that comes last in the file is worked first.
    for number in sorted(cut_off):
        _work(queued, run, number)
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert len(_ranges(run)) > 4
    assert plain.read_bytes() == place.read_bytes()


@pytest.mark.usefixtures("tiny")
def test_parts_of_parts_are_cut_as_well(queued: BatchKit, done: Ledger):
    run = job(span(_ITEMS), _note, chunk_size=1, partitions=2, finish=_in_order).start()

    def work_next(lease: Lease) -> None:
        if lease.seq == 2:
            waiting = [each.number for each in _ranges(run) if each.state is PartitionState.OPEN and not each.is_held]
            for number in waiting:
                _work(queued, run, number, watch=work_next)

    _work(queued, run, 0, watch=work_next)
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert max(each.cut_from or 0 for each in _ranges(run)) > 1
    assert list(range(_ITEMS)) == run.result == done.items()


@pytest.mark.usefixtures("tiny")
def test_a_range_that_begins_while_none_waits_is_wanted_cut_for_workers_that_come_late(queued: BatchKit, done: Ledger):
    run = job(span(_ITEMS), write, chunk_size=3, partitions=2).start()
    with Stop() as stop:
        # One worker, which has worked one partition and has the last now.
        queued._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  one slice, and no more
        queued._worker.work_partition(run.id, 1, stop=stop)  # noqa: SLF001  the same
    waiting = [each for each in _ranges(run) if each.state is PartitionState.OPEN]
    assert [1] == [each.cut_from for each in waiting]
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert list(range(_ITEMS)) == done.items()


def test_what_takes_a_moment_is_left_whole(queued: BatchKit, done: Ledger):
    run = job(span(_ITEMS), write, chunk_size=3, partitions=4).start()
    _work_first_while_others_end(queued, run)
    assert (4, RunState.SUCCEEDED) == (len(_ranges(run)), run.refresh().state)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("partitions", [1, 4])
def test_a_run_of_one_partition_and_one_over_failures_are_never_cut(queued: BatchKit, done: Ledger, partitions: int):
    is_broken = [True]

    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if is_broken[0]:
                chunk.fail(item, "broken")

    made = job(span(20), work, chunk_size=1, partitions=partitions, max_failures=20)
    run = made.start()
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert (1 == partitions) == (1 == len(_ranges(run)))
    is_broken[0] = False
    again = run.retry_failures()
    assert RunState.SUCCEEDED == _finish(queued, again)
    assert (20, 1) == (again.progress.done, len(_ranges(again)))


class Forgetful:
    """A source of a user's whose `split` forgets where it begins."""

    def __init__(self, end: int = _ITEMS, begin: int = 0) -> None:
        self._end, self._begin = end, begin

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[int, int]]:
        first = self._begin if after is None else after + 1
        return [(item, item) for item in range(first, min(first + limit, self._end))]

    def split(self, parts: int, session: Session) -> list[int]:
        return [self._end * number // parts - 1 for number in range(1, parts)]

    def until(self, upper: int) -> Forgetful:
        return Forgetful(min(upper + 1, self._end), self._begin)

    def behind(self, after: int) -> Forgetful:
        return type(self)(self._end, after + 1)


class Careless(Forgetful):
    """Its `until` forgets it, too."""

    def until(self, upper: int) -> Careless:
        return Careless(min(upper + 1, self._end))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", [Forgetful, Careless])
def test_a_cursor_that_was_passed_is_no_place_to_cut(queued: BatchKit, done: Ledger, kind: type[Forgetful]):
    run = job(kind(), _note, chunk_size=7, partitions=4, finish=_in_order).start()
    _work_first_while_others_end(queued, run)
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert list(range(_ITEMS)) == run.result == done.items()


class Refusing(Forgetful):
    """One that cannot be cut again."""

    def split(self, parts: int, session: Session) -> list[int]:
        if self._begin:
            message = "only once"
            raise ValueError(message)
        return super().split(parts, session)

    def until(self, upper: int) -> Refusing:
        return Refusing(min(upper + 1, self._end), self._begin)

    def behind(self, after: int) -> Refusing:
        return Refusing(self._end, after + 1)


@pytest.mark.usefixtures("tiny")
def test_a_source_that_refuses_to_be_cut_again_stays_whole_and_nothing_fails(queued: BatchKit, done: Ledger):
    run = job(Refusing(), write, chunk_size=3, partitions=4).start()
    _work_first_while_others_end(queued, run)
    assert (4, RunState.SUCCEEDED) == (len(_ranges(run)), run.refresh().state)
    assert list(range(_ITEMS)) == done.items()


@pytest.mark.usefixtures("tiny")
def test_a_cut_whose_reply_is_lost_ends_the_slice_and_the_next_one_knows_of_it(
    queued: BatchKit, done: Ledger, monkeypatch: pytest.MonkeyPatch
):
    cuts = store_of(queued).stealing
    cut = cuts.cut

    def loses_the_reply(*arguments: Any) -> Lease:
        cut(*arguments)
        raise DatabaseUnavailable("sqlite://", "the network is away")

    monkeypatch.setattr(cuts, "cut", loses_the_reply)
    run = job(span(_ITEMS), write, chunk_size=3, partitions=4).start()
    _work_first_while_others_end(queued, run)
    assert len(_ranges(run)) > 4
    assert [False] * len(_ranges(run)) == [each.is_held for each in _ranges(run)]
    assert RunState.SUCCEEDED == _finish(queued, run)
    assert list(range(_ITEMS)) == done.items()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("source", ["span", "rows", "rows-by-two", "csv", "nested"])
def test_workers_that_cut_each_others_ranges_all_the_time_do_each_item_once(
    server_url: str, tmp_path: Path, source: str
):
    done = Ledger(server_url)
    kit = BatchKit(server_url, queue=LocalQueue())

    def work(chunk: Chunk[Any]) -> None:
        if 0 <= _number(chunk[0]) < 30:
            time.sleep(0.03)  # not to wait for anything: these items are more work than others
        _note(chunk)

    made = SOURCES[source](done, tmp_path)
    run = job(made, work, chunk_size=1, partitions=_WORKERS, finish=_in_order).start()
    with workers(kit, _WORKERS):
        assert RunState.SUCCEEDED == wait_end(run), run.error
    # How often they did is for the machine to say; that they do is for the tests above.
    assert list(range(_ITEMS)) == run.result == done.items()
    assert _ITEMS == run.progress.done
    kit.close()
    done.engine.dispose()
