"""Rows of Parquet files, by row group."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchkit.errors import InvalidSource
from batchkit.sources.base import Source
from batchkit.sources.storage import File, file_at, require

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json


def parquet_rows(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    storage_options: Mapping[str, object] | None = None,
) -> Source[dict[str, Any]]:
    """
    Take the rows of a Parquet file as dicts; one row group of it is in memory at a time.

    A run does not go on with a file that was changed. It takes `pip install 'batchkit-jobs[files]'`.

    Args:
        path: a local file, or a URL that fsspec knows, such as s3://bucket/file.parquet.
        columns: those to read; by default all.
        storage_options: what the filesystem of a URL is told, such as its keys.

    Raises:
        InvalidSource: pyarrow is not installed. In a run: the file cannot be read, or lacks a column.
    """
    require("pyarrow", of="parquet_rows()")
    if columns is not None and (isinstance(columns, str) or not columns):
        raise InvalidSource(f"columns is a list of names, such as ['id', 'email'], or None for all: got {columns!r}")
    return _ParquetRows(file_at(path, storage_options), None if columns is None else list(columns))


class _ParquetRows:
    """Rows by the number of their group and their number in it."""

    def __init__(
        self,
        file: File,
        columns: list[str] | None,
        *,
        begin: Any = None,  # noqa: ANN401
        end: tuple[int, int] | None = None,
    ) -> None:
        self._file = file
        self._columns = columns
        self._begin = begin
        #: the group and the number of the last row, where that is not the file's
        self._end = end
        self._opened: Any = None
        #: the row group that is kept, and its number
        self._group: Any = None
        self._number = -1

    def prefetch(self, after: Any, limit: int) -> None:  # noqa: ANN401, ARG002
        """Read the row group with the first row behind *after*."""
        group, row = self._first_behind(after)
        parquet = self._parquet()
        if group < parquet.num_row_groups and row < self._rows_of(group):
            self._load(group)

    def read(
        self,
        after: Any,  # noqa: ANN401
        limit: int,
        session: Session,  # noqa: ARG002
    ) -> list[tuple[dict[str, Any], list[int]]]:
        """Give the rows behind *after*."""
        group, row = self._first_behind(after)
        parquet = self._parquet()
        found: list[tuple[dict[str, Any], list[int]]] = []
        while len(found) < limit and group < parquet.num_row_groups:
            # A group that is done is not read again to learn that.
            if row < self._rows_of(group):
                wanted = min(limit - len(found), self._rows_of(group) - row)
                taken = self._load(group).slice(row, wanted).to_pylist()
                found += [(item, [group, number]) for number, item in enumerate(taken, start=row)]
            group, row = group + 1, 0
        return found

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Give the number of rows, which the file's metadata tell."""
        group, row = self._first_behind(None)
        return max(0, sum(self._rows_of(number) for number in range(group, self._parquet().num_row_groups)) - row)

    def weigh(self, session: Session) -> int:
        """Give the number of rows."""
        return self.count(session)

    def split(self, parts: int, session: Session) -> list[list[int]]:  # noqa: ARG002
        """Cut it between row groups, since each is read whole."""
        first, row = self._first_behind(None)
        groups = range(first, self._parquet().num_row_groups)
        passed = itertools.accumulate(self._rows_of(group) - (row if group == first else 0) for group in groups)
        ends = [(end, [group, self._rows_of(group) - 1]) for group, end in zip(groups, passed, strict=True)]
        total = ends[-1][0] if ends else 0
        cuts: list[list[int]] = []
        due = 1
        for end, cursor in ends:
            if 0 < end < total and end * parts >= total * due:
                cuts.append(cursor)
                due = end * parts // total + 1
        return cuts

    def until(self, upper: Any) -> Source[dict[str, Any]]:  # noqa: ANN401
        """Give the same rows without those behind the one at *upper*."""
        return _ParquetRows(self._file.anew(), self._columns, begin=self._begin, end=_checked(upper))

    def behind(self, after: Any) -> Source[dict[str, Any]]:  # noqa: ANN401
        """Give the same rows without those up to the one at *after*."""
        _checked(after)
        return _ParquetRows(self._file.anew(), self._columns, begin=after, end=self._end)

    def anew(self) -> Source[dict[str, Any]]:
        """Give the same source with the file not opened yet."""
        return _ParquetRows(self._file.anew(), self._columns, begin=self._begin, end=self._end)

    def identity(self) -> dict[str, Json]:
        """Say that cursors are row groups and rows."""
        return {"kind": "parquet_rows"}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content."""
        return self._file.fingerprint()

    def _first_behind(self, after: Any) -> tuple[int, int]:  # noqa: ANN401
        after = self._begin if after is None else after
        if after is None:
            return 0, 0
        group, row = _checked(after)
        return group, row + 1

    def _rows_of(self, group: int) -> int:
        """Give how many of a group's rows there are, as seen from its first."""
        rows = int(self._parquet().metadata.row_group(group).num_rows)
        if self._end is None or group < self._end[0]:
            return rows
        return min(rows, self._end[1] + 1) if group == self._end[0] else 0

    def _parquet(self) -> Any:  # noqa: ANN401
        if self._opened is None:
            # Here, since the extra `files` brings them.
            arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
            try:
                opened = parquet.ParquetFile(self._file.stream())
            except arrow.ArrowInvalid as error:
                raise InvalidSource(
                    f"{self._file.name} is no Parquet file, or was not written to its end: {error}"
                ) from error
            self._check_columns(opened)
            self._opened = opened
        return self._opened

    def _check_columns(self, opened: Any) -> None:  # noqa: ANN401
        names = opened.schema_arrow.names
        # pyarrow leaves out what it does not find.
        missing = [name for name in self._columns or [] if name not in names and name.split(".")[0] not in names]
        if missing:
            raise InvalidSource(f"{self._file.name} has no column {', '.join(missing)}; it has {', '.join(names)}")

    def _load(self, number: int) -> Any:  # noqa: ANN401
        """Give a row group; it is kept, and the one before it is not."""
        if self._number != number:
            self._file.check()
            self._group, self._number = None, -1
            # One thread: workers are processes, and some of them forks, which have no threads of their parent's.
            self._group = self._parquet().read_row_group(number, columns=self._columns, use_threads=False)
            self._file.check()
            self._number = number
        return self._group


def _checked(after: Any) -> tuple[int, int]:  # noqa: ANN401
    if isinstance(after, list | tuple) and len(after) == 2 and all(type(part) is int and part >= 0 for part in after):  # noqa: PLR2004
        return after[0], after[1]
    raise InvalidSource(
        f"{after!r} is not a cursor of parquet_rows(): that is the number of a row group and of a row in it, "
        f"[0, 0] for the first row"
    )
