"""
Files that are exact to the byte, whatever crashes: what a run exports, chunk by chunk.

Each claim of a partition writes a segment of its own, so a worker that wakes up past its lease writes where nobody
reads. `chunk.carry` says which segment is the newest and how long it is: that commits with the chunk, and what lies
beyond is cut off. A segment's first line names the one before it, with the length it had then. `publish` puts them
together.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from sqlalchemy import event

from batchkit.chunk import Chunk, Finish
from batchkit.errors import OutputExists, OutputLost, OutputUnusable

PathLike: TypeAlias = "str | os.PathLike[str]"

_CARRY = "batchkit.outputs"
_BLOCK = 1 << 20
#: How many partitions' segments a thread remembers as its own; one that it forgets costs a new segment.
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class _Committed:
    """How far the file of one partition is: what `chunk.carry` holds."""

    #: the newest segment
    segment: str
    #: how much of the segment is committed, its first line included
    length: int
    #: how many bytes of the file there are, in all segments
    total: int
    #: the CRC-32 of those
    crc: int
    #: what stands in front of the first record
    head: str
    #: whether `publish` may take the place of a file that is there
    replaces: bool


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Takes records as JSON values, one a line."""

    _lines: list[bytes]
    _default: Callable[[Any], object] | None

    def write(self, record: object) -> None:
        """
        Add a record.

        Raises:
            TypeError, ValueError: it cannot be written as JSON; `default` says how to write other types.
        """
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=self._default)
        self._lines.append(text.encode() + b"\n")


@dataclass(frozen=True, slots=True)
class CsvLines:
    """Takes records as mappings of the columns to values, or as sequences in the order of the columns."""

    _lines: list[bytes]
    _columns: Sequence[str]
    _line_end: str

    def write(self, record: Mapping[str, object] | Sequence[object]) -> None:
        """
        Add a record.

        Raises:
            ValueError: it has not the columns of the file.
        """
        if isinstance(record, Mapping):
            if set(record) != set(self._columns):
                raise ValueError(f"the columns of the file are {list(self._columns)}: got {list(record)}")
            values: Sequence[object] = [record[column] for column in self._columns]
        else:
            values = record
        if isinstance(values, str | bytes) or len(values) != len(self._columns):
            raise ValueError(f"the columns of the file are {list(self._columns)}: got {values!r}")
        self._lines.append(_csv_line(values, self._line_end))


@contextmanager
def json_lines_file(
    chunk: Chunk[Any],
    path: PathLike,
    *,
    default: Callable[[Any], object] | None = None,
    replace: bool = False,
) -> Iterator[JsonLines]:
    """
    Open the file at *path* for what a chunk exports as JSON lines, UTF-8: `out.write(record)`.

    At the end of the block the records are on the disk, behind those of the chunks before. They count once the chunk is
    committed; of a chunk that is rolled back nothing is left. The file is at *path* once the job's `finish` function
    has called `publish`; until then it is in a folder beside it. A dry run writes nothing.

    Args:
        chunk: the chunk.
        path: where the file is to be; all workers of the run must reach its folder.
        default: gives something that JSON has for a value of another type, such as `str`.
        replace: let `publish` take the place of a file that is there.

    Raises:
        OutputExists: there is a file with content at *path*.
        OutputLost: what was committed is not there any more; nothing is written.
        OutputUnusable: the disk is full, or the like. None of these is taken for a fault of the items: the run fails,
            and `resume` goes on once it is mended.
    """
    lines: list[bytes] = []
    yield JsonLines(lines, default)
    _append(chunk, path, b"".join(lines), head="", replaces=replace)


@contextmanager
def csv_file(
    chunk: Chunk[Any],
    path: PathLike,
    *,
    columns: Sequence[str],
    line_end: str = "\r\n",
    replace: bool = False,
) -> Iterator[CsvLines]:
    """
    Open the file at *path* for what a chunk exports as CSV, UTF-8: `out.write(record)`; see `json_lines_file`.

    The columns stand in its first line, once.

    Args:
        chunk: the chunk.
        path: where the file is to be; all workers of the run must reach its folder.
        columns: what stands in the first line.
        line_end: what stands behind each record.
        replace: let `publish` take the place of a file that is there.

    Raises:
        OutputExists, OutputLost, OutputUnusable: as in `json_lines_file`.
    """
    lines: list[bytes] = []
    yield CsvLines(lines, columns, line_end)
    _append(chunk, path, b"".join(lines), head=_csv_line(columns, line_end).decode(), replaces=replace)


def publish(finish: Finish, path: PathLike, *, columns: Sequence[str] = (), replace: bool = False) -> int:
    """
    Put the file together at *path*, in one move, and give its size in bytes; call it in the job's `finish` function.

    The parts are in the order of the run's partitions. What is put together is held against the length and the checksum
    that committed with the chunks. Called again, after a crash before the run's end was committed, it finds that it was
    done. The folder with the parts goes once the run has succeeded.

    Args:
        finish: what the function was given.
        path: the path that the chunks were given.
        columns: the first line of a CSV file that no chunk has written to.
        replace: take the place of a file that is there.

    Raises:
        OutputExists: there is another file with content at *path*.
        OutputLost: what was committed is not there any more, or is not what was written.
        OutputUnusable: the disk is full, or the like.
    """
    if finish.is_dry_run:
        return 0
    place = Path(path)
    found = [committed for carry in finish.carries if (committed := _committed(carry, path)) is not None]
    head = found[0].head.encode() if found else _csv_line(columns, "\r\n") if columns else b""
    folder = _folder(place, finish.run_id)
    with _no_fault_of_items(place):
        if not _is_published(place, head, found):
            _refuse_to_replace(place, replaces=replace or any(each.replaces for each in found))
            _put_together(place, head, [(each, _pieces(folder, each, place)) for each in found], folder)
    # Not before the commit: until then this may have to be done again.
    event.listen(finish.session, "after_commit", lambda _: shutil.rmtree(folder, ignore_errors=True), once=True)
    return len(head) + sum(each.total for each in found)


# Appending


class _OwnSegments(threading.local):
    """The segments that this thread of this process has made, so that nobody else writes to them."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._names: dict[tuple[str, int, str], str] = {}

    def has(self, key: tuple[str, int, str], name: str) -> bool:
        # A fork shares what its parent has made, but may not write to it.
        return self._pid == os.getpid() and self._names.get(key) == name

    def add(self, key: tuple[str, int, str], name: str) -> None:
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]
        self._names.pop(key, None)
        self._names[key] = name
        if len(self._names) > _REMEMBERED:
            del self._names[next(iter(self._names))]


_own = _OwnSegments()


def _append(chunk: Chunk[Any], path: PathLike, data: bytes, *, head: str, replaces: bool) -> None:
    """Write *data* behind what the chunks before have committed, and note it in `chunk.carry`."""
    if chunk.is_dry_run:
        return
    place = Path(path)
    folder = _folder(place, chunk.run_id)
    key = (chunk.run_id, chunk.partition, os.fspath(path))
    # Read at the end of the block: the same file may have been written to inside it.
    before = _committed(chunk.carry, path)
    with _no_fault_of_items(place):
        if before is None:
            _refuse_to_replace(place, replaces=replaces)
        elif _size(folder / before.segment) < before.length:
            raise _lost(place, folder / before.segment, before.length)
        if before is not None and _own.has(key, before.segment):
            name, length = before.segment, before.length
        else:
            name, length = _new_segment(folder, chunk.partition, before)
            _own.add(key, name)
        _write(folder / name, data, at=length)
    now = _Committed(
        segment=name,
        length=length + len(data),
        total=(before.total if before else 0) + len(data),
        crc=zlib.crc32(data, before.crc if before else 0),
        head=before.head if before else head,
        replaces=before.replaces if before else replaces,
    )
    outputs = chunk.carry.get(_CARRY)
    chunk.carry[_CARRY] = {**(outputs if isinstance(outputs, dict) else {}), os.fspath(path): asdict(now)}


def _new_segment(folder: Path, partition: int, before: _Committed | None) -> tuple[str, int]:
    """Make a segment that goes on behind *before*; give its name and the length of its first line."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{partition:04}-{secrets.token_hex(8)}"
    behind = None if before is None else [before.segment, before.length]
    first_line = json.dumps({"behind": behind}).encode() + b"\n"
    with (folder / name).open("xb") as file:
        file.write(first_line)
    _sync(folder)
    _sync(folder.parent)
    return name, len(first_line)


def _write(segment: Path, data: bytes, *, at: int) -> None:
    with segment.open("r+b") as file:
        # What lies beyond is of a chunk that was rolled back.
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# Putting together


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a segment that is a part of the file."""

    segment: Path
    begin: int
    end: int

    def blocks(self) -> Iterator[bytes]:
        with self.segment.open("rb") as file:
            file.seek(self.begin)
            yield from _blocks(file, self.end - self.begin)


def _pieces(folder: Path, committed: _Committed, place: Path) -> list[_Piece]:
    """Find the pieces of a partition, from the first to the last."""
    pieces: list[_Piece] = []
    behind: Any = [committed.segment, committed.length]
    while behind is not None:
        name, length = behind
        segment = folder / name
        if _size(segment) < length:
            raise _lost(place, segment, length)
        with segment.open("rb") as file:
            first_line = file.readline()
        pieces.insert(0, _Piece(segment, len(first_line), length))
        behind = json.loads(first_line)["behind"]
    return pieces


def _put_together(place: Path, head: bytes, parts: Sequence[tuple[_Committed, Sequence[_Piece]]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Where it goes with the folder if this process dies.
    made = folder / f"whole-{secrets.token_hex(8)}"
    try:
        with made.open("xb") as file:
            file.write(head)
            for committed, pieces in parts:
                crc = total = 0
                for block in (block for piece in pieces for block in piece.blocks()):
                    file.write(block)
                    crc, total = zlib.crc32(block, crc), total + len(block)
                if (crc, total) != (committed.crc, committed.total):
                    raise OutputLost(
                        str(place),
                        problem=f"the bytes in {folder} are not those that were committed, so something else has "
                        f"written to them; rerun() the run, or put them back",
                    )
            file.flush()
            os.fsync(file.fileno())
        made.replace(place)
    finally:
        made.unlink(missing_ok=True)
    _sync(place.parent)


def _is_published(place: Path, head: bytes, parts: Sequence[_Committed]) -> bool:
    """Tell whether the whole file is at its place already."""
    if _size(place) != len(head) + sum(part.total for part in parts) or not place.exists():
        return False
    with place.open("rb") as file:
        if file.read(len(head)) != head:
            return False
        for part in parts:
            crc = 0
            for block in _blocks(file, part.total):
                crc = zlib.crc32(block, crc)
            if crc != part.crc:
                return False
    return True


def _blocks(file: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (block := file.read(min(_BLOCK, length))):
        yield block
        length -= len(block)


# What both need


def _committed(carry: Mapping[str, object], path: PathLike) -> _Committed | None:
    outputs = carry.get(_CARRY)
    found = outputs.get(os.fspath(path)) if isinstance(outputs, dict) else None
    return None if found is None else _Committed(**found)


def _folder(place: Path, run_id: str) -> Path:
    return place.with_name(f"{place.name}.{run_id}.parts")


def _refuse_to_replace(place: Path, *, replaces: bool) -> None:
    if not replaces and _size(place) > 0:
        raise OutputExists(str(place))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _lost(place: Path, segment: Path, length: int) -> OutputLost:
    there = f"has {_size(segment)}" if segment.exists() else "is not there"
    return OutputLost(
        str(place),
        problem=(
            f"{length} bytes of {segment} were committed, but it {there}. It is on another machine's disk, or the "
            f"disk was not kept (on Heroku and the like each worker has its own, and a new one with each deploy). Put "
            f"the file on a disk that all workers share, or upload its parts as examples/export_multipart.py does; if "
            f"what was committed is gone, rerun() the run"
        ),
    )


def _sync(folder: Path) -> None:
    """Make sure that a new file's name outlives a power cut, where the file system can say so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _csv_line(values: Sequence[object], line_end: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerow(values)
    return text.getvalue().encode()


@contextmanager
def _no_fault_of_items(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputUnusable(str(place), problem=str(error)) from error
