"""Records of files, by byte offset."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from batchkit.errors import InvalidSource
from batchkit.sources.base import Estimate, Source

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

_BLOCK = 1 << 20
_LONGEST_FIELD = 1 << 30
_BOM = codecs.BOM_UTF8
_SHOWN = 80


def csv_rows(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    fieldnames: Sequence[str] | None = None,
    delimiter: str = ",",
    quotechar: str = '"',
) -> Source[dict[str, str]]:
    """
    Take the records of a CSV file as dicts; quoted fields may hold newlines.

    A record with fewer fields than the header has "" for the rest. A run does not go on with a file that was changed.

    Args:
        path: a local file.
        encoding: of the text; one in which a newline is always the byte 0x0A.
        errors: what to do with bytes that are not of the encoding: "strict" or "replace", as in `open()`.
        fieldnames: the names of the fields, where the file has no header.
        delimiter: what separates fields.
        quotechar: what quotes fields.

    Raises:
        InvalidSource: the file cannot be read, its header is unusable, or a record is; it says where.
    """
    _check_encoding(encoding, errors)
    dialect = _Dialect(encoding, errors, delimiter, quotechar)
    return _CsvRows(_File(path), dialect, None if fieldnames is None else list(fieldnames))


def json_lines(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> Source[Any]:
    """
    Take the values of a file with one JSON value a line; blank lines are skipped.

    A run does not go on with a file that was changed.

    Raises:
        InvalidSource: the file cannot be read, or a line is not JSON; it says where.
    """
    _check_encoding(encoding, "strict")
    return _JsonLines(_File(path), encoding)


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    errors: str
    delimiter: str
    quotechar: str


@dataclass(frozen=True)
class _Content:
    """What one pass over a file finds out."""

    size: int
    digest: str
    lines: int
    has_quotes: bool


#: What is known of files by their identity, so that slices on one worker do not read a whole file again.
_CONTENTS: dict[tuple[str, int, int, int], _Content] = {}


class _File:
    """A local file that must not change while it is read; it stays open as long as this object lives."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stream: BinaryIO | None = None
        self._status = (0, 0)
        self.position = -1

    def at(self, offset: int) -> BinaryIO:
        """Give the open file, standing at *offset*."""
        if self._stream is None:
            self._stream = self._open()
            # Not __del__: in a cycle, as an exception makes one, the stream would be collected first, with a warning.
            weakref.finalize(self, self._stream.close)
            self._status = _status(self._stream)
            self.position = -1
        if _status(self._stream) != self._status:
            raise InvalidSource(f"{self.path} was changed while it was read; let it be written to the end first")
        size, _ = self._status
        if offset > size:
            raise InvalidSource(f"{self.path} ends at byte {size}, before the cursor at {offset}; it was changed")
        if self.position != offset:
            self._stream.seek(offset)
            self.position = offset
        return self._stream

    def content(self, *, quotechar: str = "") -> _Content:
        """Read the whole file once and keep what was found for as long as it is the same file."""
        with self._open() as stream:
            status = os.fstat(stream.fileno())
            name = f"{self.path.resolve()}{quotechar}"
            key = (name, status.st_size, status.st_mtime_ns, status.st_ino)
            if key not in _CONTENTS:
                _CONTENTS[key] = _read_content(stream, quotechar.encode())
            return _CONTENTS[key]

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InvalidSource(
                f"the file {self.path} cannot be read ({error.strerror}); give a path that every worker can open"
            ) from error


class _Lines:
    """
    Lines of a file from an offset on, decoded; `offset` is always behind the last line that was given.

    csv.reader asks for one line after the other and no further than the record it makes, so that after each record
    the offset is where the next one begins.
    """

    def __init__(self, file: _File, offset: int, dialect: _Dialect) -> None:
        self._is_utf8 = codecs.lookup(dialect.encoding).name in ("utf-8", "utf-8-sig")
        self._file = file
        self._stream = file.at(offset)
        self._dialect = dialect
        self.offset = offset

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline():
            began = self.offset
            self.offset += len(line)
            self._file.position = self.offset
            content = line.removeprefix(_BOM) if began == 0 and self._is_utf8 else line
            if b"\0" in content:
                raise InvalidSource(f"{self._file.path}, byte {began}: the line has a NUL byte; it is no text")
            try:
                # Not as utf-8-sig, which would take a BOM away at the beginning of each line.
                encoding = "utf-8" if self._is_utf8 else self._dialect.encoding
                yield content.decode(encoding, self._dialect.errors)
            except UnicodeDecodeError as error:
                raise InvalidSource(
                    f"{self._file.path}, byte {began + error.start}: {line[:_SHOWN]!r} is not {self._dialect.encoding} "
                    f'({error.reason}); give its encoding=..., or errors="replace"'
                ) from error


class _CsvRows:
    def __init__(self, file: _File, dialect: _Dialect, fieldnames: list[str] | None) -> None:
        self._file = file
        self._dialect = dialect
        self._given = fieldnames
        self._header: tuple[list[str], int] | None = None

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[dict[str, str], int]]:  # noqa: ARG002
        """Give the records behind the byte offset *after*."""
        names, begin = self._names()
        lines = _Lines(self._file, begin if after is None else after, self._dialect)
        found: list[tuple[dict[str, str], int]] = []
        for record in self._records(lines):
            if record:
                found.append((self._item(names, record, lines.offset), lines.offset))
            if len(found) == limit:
                break
        return found

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Count the lines; an estimate where a quoted field may hold some of them."""
        content = self._file.content(quotechar=self._dialect.quotechar)
        records = max(0, content.lines - (self._given is None))
        return Estimate(records) if content.has_quotes else records

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
        content = self._file.content(quotechar=self._dialect.quotechar)
        return {"size": content.size, "digest": content.digest}

    def _names(self) -> tuple[list[str], int]:
        if self._header is None:
            lines = _Lines(self._file, 0, self._dialect)
            names = self._given if self._given is not None else next((r for r in self._records(lines) if r), [])
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated or not all(names):
                problem = f"names {', '.join(repeated)} twice" if repeated else "has a field without a name"
                raise InvalidSource(f"the header of {self._file.path} {problem}; mend it, or give fieldnames=[...]")
            self._header = (names, 0 if self._given is not None else lines.offset)
        return self._header

    def _records(self, lines: _Lines) -> Iterator[list[str]]:
        began = lines.offset
        # The limit is the process's; the default of 128 kB would refuse a field that is only long.
        if csv.field_size_limit() < _LONGEST_FIELD:
            csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(iter(lines), delimiter=self._dialect.delimiter, quotechar=self._dialect.quotechar)
        try:
            for record in reader:
                yield record
                began = lines.offset
        except csv.Error as error:
            raise InvalidSource(
                f"{self._file.path}, the record at byte {began} is not CSV ({error}); mend it there"
            ) from error

    def _item(self, names: list[str], record: list[str], end: int) -> dict[str, str]:
        if len(record) > len(names):
            raise InvalidSource(
                f"{self._file.path}, the record that ends at byte {end} has {len(record)} fields and the header "
                f"{len(names)}: {record!r:.200}; mend it there, or give the right delimiter=... and quotechar=..."
            )
        return dict(zip(names, record + [""] * (len(names) - len(record)), strict=True))


class _JsonLines:
    def __init__(self, file: _File, encoding: str) -> None:
        self._file = file
        self._dialect = _Dialect(encoding, "strict", "", "")

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[Any, int]]:  # noqa: ARG002
        """Give the values behind the byte offset *after*."""
        lines = _Lines(self._file, after or 0, self._dialect)
        found: list[tuple[Any, int]] = []
        began = lines.offset
        for line in lines:
            if line.strip():
                found.append((self._value(line, began), lines.offset))
            if len(found) == limit:
                break
            began = lines.offset
        return found

    def count(self, session: Session) -> int:  # noqa: ARG002
        """Count the lines that are not blank."""
        return self._file.content().lines

    def identity(self) -> dict[str, Json]:
        """Describe how the file is cut into values."""
        return {"kind": "json_lines", "encoding": self._dialect.encoding}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content."""
        content = self._file.content()
        return {"size": content.size, "digest": content.digest}

    def _value(self, line: str, began: int) -> Any:  # noqa: ANN401
        try:
            return json.loads(line)
        except ValueError as error:
            torn = "; the line has no end, so the file was perhaps not written to its end" if line[-1] != "\n" else ""
            raise InvalidSource(
                f"{self._file.path}, byte {began}: {line[:_SHOWN]!r} is not JSON ({error}){torn}; mend it there"
            ) from error


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


def _status(stream: BinaryIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def _is_blank_csv(line: bytes) -> bool:
    # A line of spaces or delimiters is a record; only an empty one is skipped.
    return not line.strip(b"\r\n")


def _is_blank_json(line: bytes) -> bool:
    return not line.strip()


def _read_content(stream: BinaryIO, quotechar: bytes) -> _Content:
    is_blank = _is_blank_csv if quotechar else _is_blank_json
    digest = hashlib.blake2b(digest_size=16)
    size = lines = 0
    has_quotes = False
    for line_block in iter(lambda: stream.readlines(_BLOCK), []):
        for line in line_block:
            digest.update(line)
            size += len(line)
            lines += not is_blank(line)
            has_quotes = has_quotes or (bool(quotechar) and quotechar in line)
    return _Content(size=size, digest=digest.hexdigest(), lines=lines, has_quotes=has_quotes)
