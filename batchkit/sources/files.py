"""Records of files, by byte offset."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from batchkit.errors import InvalidSource
from batchkit.sources.base import Estimate, Source
from batchkit.sources.storage import File, file_at

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

_BLOCK = 1 << 20
_LONGEST_FIELD = 1 << 30
_BOM = codecs.BOM_UTF8
_SHOWN = 80
#: How many bytes are read, while a run is worked, to find where records end: what takes less than a second.
_READ_TO_CUT = 64 << 20


def csv_rows(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    fieldnames: Sequence[str] | None = None,
    delimiter: str = ",",
    quotechar: str = '"',
    multiline: bool = True,
    storage_options: Mapping[str, object] | None = None,
) -> Source[dict[str, str]]:
    """
    Take the records of a CSV file as dicts; quoted fields may hold newlines.

    A record with fewer fields than the header has "" for the rest. A run does not go on with a file that was changed.

    Args:
        path: a local file, or a URL that fsspec knows, such as s3://bucket/file.csv (`batchkit-jobs[files]`).
        encoding: of the text; one in which a newline is always the byte 0x0A.
        errors: what to do with bytes that are not of the encoding: "strict" or "replace", as in `open()`.
        fieldnames: the names of the fields, where the file has no header.
        delimiter: what separates fields.
        quotechar: what quotes fields.
        multiline: False where no field holds a newline, so that a large file can be cut into partitions without being
            read for it; one that holds one all the same is refused.
        storage_options: what the filesystem of a URL is told, such as its keys.

    Raises:
        InvalidSource: the file cannot be read, its header is unusable, or a record is; it says where.
    """
    _check_encoding(encoding, errors)
    dialect = _Dialect(encoding, errors, delimiter, quotechar)
    file = file_at(path, storage_options)
    records = _CsvRows(file, dialect, None if fieldnames is None else list(fieldnames), multiline=multiline)
    return records if file.is_local else _Ahead(records)


def json_lines(
    path: str | os.PathLike[str], *, encoding: str = "utf-8", storage_options: Mapping[str, object] | None = None
) -> Source[Any]:
    """
    Take the values of a file with one JSON value a line; blank lines are skipped.

    A run does not go on with a file that was changed. *path* and *storage_options* are those of `csv_rows`.

    Raises:
        InvalidSource: the file cannot be read, or a line is not JSON; it says where.
    """
    _check_encoding(encoding, "strict")
    file = file_at(path, storage_options)
    records = _JsonLines(file, encoding)
    return records if file.is_local else _Ahead(records)


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    errors: str
    delimiter: str
    quotechar: str


class _Lines:
    """
    Lines of a file from an offset on, decoded; `offset` is always behind the last line that was given.

    csv.reader asks for one line after the other and no further than the record it makes, so that after each record
    the offset is where the next one begins.
    """

    def __init__(self, file: File, offset: int, dialect: _Dialect) -> None:
        self._is_utf8 = codecs.lookup(dialect.encoding).name in ("utf-8", "utf-8-sig")
        self._file = file
        self._stream = file.at(offset)
        self._dialect = dialect
        self.offset = offset

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline():
            began = self.offset
            self.offset += len(line)
            self._file.moved_to(self.offset)
            content = line.removeprefix(_BOM) if began == 0 and self._is_utf8 else line
            if b"\0" in content:
                raise InvalidSource(f"{self._file.name}, byte {began}: the line has a NUL byte; it is no text")
            try:
                # Not as utf-8-sig, which would take a BOM away at the beginning of each line.
                encoding = "utf-8" if self._is_utf8 else self._dialect.encoding
                yield content.decode(encoding, self._dialect.errors)
            except UnicodeDecodeError as error:
                raise InvalidSource(
                    f"{self._file.name}, byte {began + error.start}: {line[:_SHOWN]!r} is not {self._dialect.encoding} "
                    f'({error.reason}); give its encoding=..., or errors="replace"'
                ) from error


@dataclass(frozen=True)
class _Part:
    """The records behind the byte `begin` (0: from the first) up to the byte `end` (None: to the last)."""

    begin: int = 0
    end: int | None = None

    def ends_by(self, offset: int) -> bool:
        return self.end is not None and offset >= self.end

    def until(self, upper: int) -> _Part:
        return replace(self, end=upper if self.end is None else min(upper, self.end))

    def behind(self, after: object, kind: str) -> _Part:
        if type(after) is not int or after < 0:
            raise InvalidSource(f"{after!r} is not a cursor of {kind}(): that is the byte at which a record ended")
        return replace(self, begin=max(after, self.begin))

    def counted(self, records: int, size: int) -> int:
        """Say how many of the file's records are in the part."""
        if not self.begin and self.end is None:
            return records
        end = size if self.end is None else min(size, self.end)
        return Estimate(round(records * max(0, end - self.begin) / size)) if size else records

    def bytes_of(self, size: int) -> int:
        """Say how many of the file's bytes are in the part."""
        return max(0, (size if self.end is None else min(size, self.end)) - self.begin)

    def cuts(self, begin: int, parts: int, file: File) -> list[int]:
        """Give the ends of lines at which it is cut into ranges of about as many bytes each."""
        end = file.size() if self.end is None else self.end
        targets = [begin + (end - begin) * number // parts for number in range(1, parts)]
        found = (file.line_from(target) for target in dict.fromkeys(targets) if begin < target < end)
        return [cut for cut in dict.fromkeys(found) if begin < cut < end]


_WHOLE = _Part()


class _CsvRows:
    def __init__(
        self,
        file: File,
        dialect: _Dialect,
        fieldnames: list[str] | None,
        *,
        multiline: bool,
        part: _Part = _WHOLE,
    ) -> None:
        self._file = file
        self._dialect = dialect
        self._given = fieldnames
        self._multiline = multiline
        self._part = part
        self._header: tuple[list[str], int] | None = None

    def read(self, after: int | None, limit: int, session: Session | None) -> list[tuple[dict[str, str], int]]:  # noqa: ARG002
        """Give the records behind the byte offset *after*."""
        names, begin = self._names()
        lines = _Lines(self._file, max(begin, self._part.begin) if after is None else after, self._dialect)
        found: list[tuple[dict[str, str], int]] = []
        if self._part.ends_by(lines.offset):
            return found
        for record in self._records(lines):
            if record:
                found.append((self._item(names, record, lines.offset), lines.offset))
            if len(found) == limit or self._part.ends_by(lines.offset):
                break
        return found

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Count the lines; an estimate where a quoted field may hold some of them, or that would take long."""
        lines = self._file.records(quotechar=self._dialect.quotechar)
        records = max(0, lines - (self._given is None))
        counted = Estimate(records) if isinstance(lines, Estimate) else records
        return self._part.counted(counted, self._file.size())

    def weigh(self, session: Session) -> int:
        """Count the lines, in proportion to the bytes; 0 where all of them would have to be read to cut them."""
        quotechar = self._dialect.quotechar
        is_read_for_that = self._multiline and isinstance(self._file.records(quotechar=quotechar), Estimate)
        if is_read_for_that and self._part.bytes_of(self._file.size()) > _READ_TO_CUT:
            return 0
        return self.count(session)

    def split(self, parts: int, session: Session | None) -> list[int]:  # noqa: ARG002
        """
        Cut it at the ends of records.

        In the middle of a file nobody can tell whether a newline ends a record or stands in quotes. Where nothing is
        quoted each does; else all that stands before must be read, once.
        """
        begin = max(self._names()[1], self._part.begin)
        if not self._multiline:
            return self._part.cuts(begin, parts, self._file)
        if not self._file.is_local:
            raise InvalidSource(
                f"{self._file.name} cannot be cut into partitions: a newline in it may stand in quotes, and it would "
                f"have to be read to its end to know; if no field of it holds one, say so: "
                f"csv_rows(..., multiline=False)"
            )
        if not isinstance(self._file.records(quotechar=self._dialect.quotechar), Estimate):
            return self._part.cuts(begin, parts, self._file)
        return self._cuts_by_reading(begin, parts)

    def until(self, upper: int) -> _CsvRows:
        """Give the same records without those that end behind the byte *upper*."""
        return self._with(self._part.until(upper))

    def behind(self, after: object) -> _CsvRows:
        """Give the same records without those that end at the byte *after* or before it."""
        return self._with(self._part.behind(after, "csv_rows"))

    def identity(self) -> dict[str, Json]:
        """Describe how the file is cut into records."""
        return {
            "kind": "csv_rows",
            "encoding": self._dialect.encoding,
            "delimiter": self._dialect.delimiter,
            "quotechar": self._dialect.quotechar,
            "fieldnames": list(self._names()[0]),
        }

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content."""
        return self._file.fingerprint(quotechar=self._dialect.quotechar)

    def anew(self) -> _CsvRows:
        """Give the same source with the file not opened yet."""
        return self._with(self._part)

    def _with(self, part: _Part) -> _CsvRows:
        return _CsvRows(self._file.anew(), self._dialect, self._given, multiline=self._multiline, part=part)

    def _cuts_by_reading(self, begin: int, parts: int) -> list[int]:
        end = self._file.size() if self._part.end is None else self._part.end
        lines = _Lines(self._file, begin, self._dialect)
        cuts: list[int] = []
        targets = iter(begin + (end - begin) * number // parts for number in range(1, parts))
        target = next(targets, end)
        for _ in self._records(lines):
            if lines.offset >= end:
                break
            if lines.offset >= target:
                cuts.append(lines.offset)
                while target <= lines.offset:
                    target = next(targets, end)
        return cuts

    def _names(self) -> tuple[list[str], int]:
        if self._header is None:
            lines = _Lines(self._file, 0, self._dialect)
            names = self._given if self._given is not None else next((r for r in self._records(lines) if r), [])
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated or not all(names):
                problem = f"names {', '.join(repeated)} twice" if repeated else "has a field without a name"
                raise InvalidSource(f"the header of {self._file.name} {problem}; mend it, or give fieldnames=[...]")
            self._header = (names, 0 if self._given is not None else lines.offset)
        return self._header

    def _records(self, lines: _Lines) -> Iterator[list[str]]:
        began, number = lines.offset, 0
        # The limit is the process's; the default of 128 kB would refuse a field that is only long.
        if csv.field_size_limit() < _LONGEST_FIELD:
            csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(iter(lines), delimiter=self._dialect.delimiter, quotechar=self._dialect.quotechar)
        try:
            for record in reader:
                if not self._multiline and reader.line_num != number + 1:
                    raise InvalidSource(
                        f"{self._file.name}, the record at byte {began} holds a newline, but multiline=False says that "
                        f"none does; mend it there, or leave multiline out"
                    )
                number = reader.line_num
                yield record
                began = lines.offset
        except csv.Error as error:
            raise InvalidSource(
                f"{self._file.name}, the record at byte {began} is not CSV ({error}); mend it there"
            ) from error

    def _item(self, names: list[str], record: list[str], end: int) -> dict[str, str]:
        if len(record) > len(names):
            raise InvalidSource(
                f"{self._file.name}, the record that ends at byte {end} has {len(record)} fields and the header "
                f"{len(names)}: {record!r:.200}; mend it there, or give the right delimiter=... and quotechar=..."
            )
        return dict(zip(names, record + [""] * (len(names) - len(record)), strict=True))


class _JsonLines:
    def __init__(self, file: File, encoding: str, *, part: _Part = _WHOLE) -> None:
        self._file = file
        self._dialect = _Dialect(encoding, "strict", "", "")
        self._part = part

    def read(self, after: int | None, limit: int, session: Session | None) -> list[tuple[Any, int]]:  # noqa: ARG002
        """Give the values behind the byte offset *after*."""
        lines = _Lines(self._file, self._part.begin if after is None else after, self._dialect)
        found: list[tuple[Any, int]] = []
        began = lines.offset
        if self._part.ends_by(began):
            return found
        for line in lines:
            if line.strip():
                found.append((self._value(line, began), lines.offset))
            if len(found) == limit or self._part.ends_by(lines.offset):
                break
            began = lines.offset
        return found

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Count the lines that are not blank."""
        return self._part.counted(self._file.records(quotechar=""), self._file.size())

    def weigh(self, session: Session) -> int:
        """Count the lines, in proportion to the bytes."""
        return self.count(session)

    def split(self, parts: int, session: Session | None) -> list[int]:  # noqa: ARG002
        """Cut it at the ends of lines: in JSON none is in a value."""
        return self._part.cuts(self._part.begin, parts, self._file)

    def until(self, upper: int) -> _JsonLines:
        """Give the same values without those that end behind the byte *upper*."""
        return self._with(self._part.until(upper))

    def behind(self, after: object) -> _JsonLines:
        """Give the same values without those that end at the byte *after* or before it."""
        return self._with(self._part.behind(after, "json_lines"))

    def identity(self) -> dict[str, Json]:
        """Describe how the file is cut into values."""
        return {"kind": "json_lines", "encoding": self._dialect.encoding}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content."""
        return self._file.fingerprint(quotechar="")

    def anew(self) -> _JsonLines:
        """Give the same source with the file not opened yet."""
        return self._with(self._part)

    def _with(self, part: _Part) -> _JsonLines:
        return _JsonLines(self._file.anew(), self._dialect.encoding, part=part)

    def _value(self, line: str, began: int) -> Any:  # noqa: ANN401
        try:
            return json.loads(line)
        except ValueError as error:
            torn = "; the line has no end, so the file was perhaps not written to its end" if line[-1] != "\n" else ""
            raise InvalidSource(
                f"{self._file.name}, byte {began}: {line[:_SHOWN]!r} is not JSON ({error}){torn}; mend it there"
            ) from error


_Records: TypeAlias = "_CsvRows | _JsonLines"


class _Ahead:
    """The records of a file that others keep, which are read before the chunk's transaction begins."""

    def __init__(self, records: _Records) -> None:
        self._records = records
        self._ahead: tuple[int | None, int, list[tuple[Any, int]]] | None = None

    def prefetch(self, after: int | None, limit: int) -> None:
        """Read what `read` will give."""
        self._ahead = (after, limit, list(self._records.read(after, limit, None)))

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[Any, int]]:
        """Give the records behind the byte offset *after*."""
        # Once: the function may have changed them when the chunk is tried again.
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == after and limit <= ahead[1]:
            return ahead[2][:limit]
        return list(self._records.read(after, limit, session))

    def count(self, session: Session) -> int:
        """Guess the number of records from the beginning of the file."""
        return self._records.count(session)

    def weigh(self, session: Session) -> int:
        """Count the records, in proportion to the bytes."""
        return self._records.weigh(session)

    def split(self, parts: int, session: Session) -> list[int]:
        """Cut it at the ends of records."""
        return self._records.split(parts, session)

    def until(self, upper: int) -> _Ahead:
        """Give the same records without those that end behind the byte *upper*."""
        return _Ahead(self._records.until(upper))

    def behind(self, after: object) -> _Ahead:
        """Give the same records without those that end at the byte *after* or before it."""
        return _Ahead(self._records.behind(after))

    def identity(self) -> dict[str, Json]:
        """Describe how the file is cut into records."""
        return self._records.identity()

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content."""
        return self._records.fingerprint()

    def anew(self) -> _Ahead:
        """Give the same source with the file not opened yet."""
        return _Ahead(self._records.anew())


def _check_encoding(encoding: str, errors: str) -> None:
    try:
        codecs.lookup_error(errors)
        one_byte_newline = "\n".encode(encoding) == b"\n" and "aĊ".encode(encoding, "replace").count(b"\n") == 0
    except LookupError as error:
        raise InvalidSource(
            f"{error}; encoding is a codec of Python such as utf-8, errors is strict or replace"
        ) from None
    if not one_byte_newline:
        raise InvalidSource(
            f"in {encoding} a byte 0x0A need not be a newline, so a file cannot be entered in the middle; "
            f"convert it to UTF-8 first: iconv -f {encoding} -t utf-8"
        )
