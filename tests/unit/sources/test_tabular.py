"""Parquet by row group: each row once, one group in memory, and no change unnoticed."""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import parquet_rows
from batchkit.errors import InvalidSource
from batchkit.sources import Continued, Counted, Fingerprinted

NO_SESSION = cast("Session", None)


def _write(path: Path | str, groups: list[int]) -> None:
    numbers = iter(range(sum(groups)))
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    with fsspec.open(str(path), "wb") as stream, pq.ParquetWriter(stream, schema) as writer:
        for group in groups:
            rows = [{"n": number, "text": f"no. {number}"} for number in itertools.islice(numbers, group)]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _walk(make: Callable[[], Any], *, limit: int) -> list[int]:
    found: list[int] = []
    after = None
    while True:
        source = make()
        source.prefetch(after, limit)
        read = source.read(after, limit, NO_SESSION)
        if not read:
            return found
        assert len(read) <= limit
        found += [item["n"] for item, _ in read]
        after = read[-1][1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(groups=st.lists(st.integers(0, 6), max_size=6), limit=st.integers(1, 7), is_one_slice=st.booleans())
@pytest.mark.parametrize("is_remote", [False, True])
def test_each_row_comes_once(tmp_path: Path, groups: list[int], limit: int, *, is_one_slice: bool, is_remote: bool):
    path = f"memory://{uuid.uuid4().hex}/x" if is_remote else tmp_path / "x"
    _write(path, groups)
    source = parquet_rows(path)
    assert list(range(sum(groups))) == _walk(lambda: source if is_one_slice else parquet_rows(path), limit=limit)
    assert isinstance(source, Counted)
    assert sum(groups) == source.count(NO_SESSION)


def test_a_row_group_is_read_once_for_all_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _write(tmp_path / "x", [50, 50])
    read: list[int] = []
    real = pq.ParquetFile.read_row_group

    def noting(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return real(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting)
    source = parquet_rows(tmp_path / "x")
    assert list(range(100)) == _walk(lambda: source, limit=7)
    assert [0, 1] == read


def test_a_run_that_goes_on_reads_the_group_of_its_cursor_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _write(tmp_path / "x", [10, 10, 10])
    read: list[int] = []
    real = pq.ParquetFile.read_row_group

    def noting(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return real(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting)
    assert [(15, [1, 5])] == [(item["n"], at) for item, at in parquet_rows(tmp_path / "x").read([1, 4], 1, NO_SESSION)]
    assert [20] == [item["n"] for item, _ in parquet_rows(tmp_path / "x").read([1, 9], 1, NO_SESSION)]
    assert [1, 2] == read
    assert [] == list(parquet_rows(tmp_path / "x").read([2, 9], 1, NO_SESSION))


def test_values_are_those_of_python_and_columns_can_be_chosen(tmp_path: Path):
    at = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
    row = {"id": 1, "price": Decimal("1.50"), "at": at, "raw": b"\0\xff", "tags": ["a", "b"], "none": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x")
    (item,) = (item for item, _ in parquet_rows(tmp_path / "x").read(None, 5, NO_SESSION))
    assert row == item
    (item,) = (item for item, _ in parquet_rows(tmp_path / "x", columns=["tags", "id"]).read(None, 5, NO_SESSION))
    assert {"id": 1, "tags": ["a", "b"]} == item


@pytest.mark.parametrize("columns", [[], "id"])
def test_what_is_no_list_of_columns_is_refused(tmp_path: Path, columns: Any):
    with pytest.raises(InvalidSource, match="columns is a list of names"):
        parquet_rows(tmp_path / "x", columns=columns)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path):
    _write(tmp_path / "x", [1])
    with pytest.raises(InvalidSource, match="has no column m; it has n, text"):
        parquet_rows(tmp_path / "x", columns=["n", "m"]).read(None, 1, NO_SESSION)


def test_what_is_no_parquet_file_or_a_torn_one_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    _write(path, [100])
    whole = path.read_bytes()
    for content in (b"a,b\n1,2\n", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(InvalidSource, match="no Parquet file, or was not written to its end"):
            parquet_rows(path).read(None, 1, NO_SESSION)
    with pytest.raises(InvalidSource, match="cannot be read"):
        parquet_rows(tmp_path / "nothing").read(None, 1, NO_SESSION)


def test_a_file_that_changes_between_two_groups_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    _write(path, [3, 3])
    source = parquet_rows(path)
    ((_, after),) = source.read([0, 1], 1, NO_SESSION)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    with pytest.raises(InvalidSource, match="was changed while it was read"):
        source.read(after, 1, NO_SESSION)


@pytest.mark.parametrize("is_remote", [False, True])
def test_the_fingerprint_tells_another_content(tmp_path: Path, *, is_remote: bool):
    path = f"memory://{uuid.uuid4().hex}/x" if is_remote else tmp_path / "x"
    found = []
    for groups in ([3], [4]):
        _write(path, groups)
        source = parquet_rows(path)
        assert isinstance(source, Fingerprinted)
        assert source.fingerprint() == parquet_rows(path).fingerprint()  # type: ignore[attr-defined]
        found.append(source.fingerprint())
    assert found[0] != found[1]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidSource, match=r"the package pyarrow.*batchkit-jobs\[files\]"):
        parquet_rows(tmp_path / "x")


def test_a_beginning_is_left_out_and_not_counted(tmp_path: Path):
    _write(tmp_path / "x", [3, 3, 3])
    source = parquet_rows(tmp_path / "x")
    assert isinstance(source, Continued)
    behind: Any = source.behind([1, 1]).anew()  # type: ignore[attr-defined]
    assert [5, 6] == [item["n"] for item, _ in behind.read(None, 2, NO_SESSION)]
    assert 4 == behind.count(NO_SESSION)
    with pytest.raises(InvalidSource, match=r"is not a cursor of parquet_rows\(\)"):
        source.behind(7)
