"""Files that must not change while a run reads them: local ones, and those that fsspec opens by a URL."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from batchkit.errors import InvalidSource
from batchkit.sources.base import Estimate
from batchkit.values import Json

_BLOCK = 1 << 20
#: How files begin that are packed, and so cannot be entered in the middle.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
#: What filesystems call that which tells one content from another ...
_BY_CONTENT = ("md5hash", "contentmd5", "checksum", "crc32c", "digest", "etag")
#: ... and what tells at least that a file was written anew.
_BY_WRITING = ("versionid", "generation", "mtime", "lastmodified", "modified", "updated", "created")


class Readable(Protocol):
    """An open file that stands somewhere."""

    def readline(self) -> bytes:
        """Read to the end of the line, or of the file."""
        ...


class File(Protocol):
    """A file that must not change while it is read; it stays open as long as this object lives."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether reading it asks nobody else."""
        ...

    def at(self, offset: int) -> Readable:
        """
        Give the open file, standing at *offset*, which is the beginning of a line.

        Raises:
            InvalidSource: it cannot be read, was changed, is packed, or has no line that begins there.
        """
        ...

    def moved_to(self, offset: int) -> None:
        """Take note that what `at` gave was read up to *offset*."""
        ...

    def size(self) -> int:
        """Give the number of bytes in it."""
        ...

    def line_from(self, offset: int) -> int:
        """Give where the first line begins that begins at *offset* or behind it; the size where none does."""
        ...

    def stream(self) -> BinaryIO:
        """Give the open file as it is, for a reader of another kind."""
        ...

    def check(self) -> None:
        """
        See that it is what it was when it was opened.

        Raises:
            InvalidSource: it was changed.
        """
        ...

    def records(self, *, quotechar: str) -> int:
        """Count the lines that are not blank; an estimate where a quoted field may hold some of them."""
        ...

    def fingerprint(self, *, quotechar: str | None = None) -> dict[str, Json]:
        """Describe the content; with *quotechar*, what the same pass tells `records` is kept."""
        ...

    def anew(self) -> File:
        """Give the same file, not opened yet."""
        ...


def file_at(path: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> File:
    """
    Give the file at a path, or at a URL such as s3://bucket/file.csv.

    Raises:
        InvalidSource: it is a URL and fsspec is not installed, or options were given for a local file.
    """
    if isinstance(path, str) and "://" in path:
        require("fsspec", of=path)
        return _RemoteFile(path, dict(storage_options or {}))
    if storage_options:
        raise InvalidSource(f"storage_options are for URLs, and {os.fspath(path)} is a local file; leave them out")
    return _LocalFile(Path(path))


def require(package: str, *, of: object) -> None:
    """
    Refuse to go on without an optional package.

    Raises:
        InvalidSource: it is not installed; it says which extra has it.
    """
    if importlib.util.find_spec(package) is None:
        raise InvalidSource(f"{of} takes the package {package}, which is not there: pip install 'batchkit-jobs[files]'")


@dataclass(frozen=True)
class _Content:
    """What one pass over a file finds out."""

    size: int
    digest: str
    lines: int
    has_quotes: bool


#: What is known of files by their identity, so that slices on one worker do not read a whole file again.
_CONTENTS: dict[tuple[str, int, int, int], _Content] = {}


class _LocalFile:
    is_local = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)
        self._stream: BinaryIO | None = None
        self._status = (0, 0)
        self._position = -1

    def at(self, offset: int) -> Readable:
        stream = self.stream()
        if self._position < 0:
            _check_not_packed(self.name, stream.read(8))
        self.check()
        size, _ = self._status
        if self._position != offset:
            stream.seek(max(0, offset - 1))
            _check_offset(self.name, offset, size=size, before=stream.read(1) if 0 < offset <= size else b"\n")
            self._position = offset
        return stream

    def moved_to(self, offset: int) -> None:
        self._position = offset

    def size(self) -> int:
        self.stream()
        return self._status[0]

    def line_from(self, offset: int) -> int:
        with self._open() as stream:
            return _line_from(stream, offset)

    def stream(self) -> BinaryIO:
        if self._stream is None:
            self._stream = self._open()
            # Not __del__: in a cycle, as an exception makes one, the stream would be collected first, with a warning.
            weakref.finalize(self, self._stream.close)
            self._status = _status(self._stream)
        return self._stream

    def check(self) -> None:
        if _status(self.stream()) != self._status:
            raise _changed(self.name)

    def records(self, *, quotechar: str) -> int:
        content = self._content(quotechar)
        return Estimate(content.lines) if content.has_quotes else content.lines

    def fingerprint(self, *, quotechar: str | None = None) -> dict[str, Json]:
        content = self._content(quotechar)
        return {"size": content.size, "digest": content.digest}

    def anew(self) -> File:
        return _LocalFile(self._path)

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise InvalidSource(
                f"the file {self._path} cannot be read ({error.strerror}); give a path that every worker can open"
            ) from error

    def _content(self, quotechar: str | None) -> _Content:
        """Read the whole file once and keep what was found for as long as it is the same file."""
        with self._open() as stream:
            status = os.fstat(stream.fileno())
            name = f"{self._path.resolve()}{quotechar}"
            key = (name, status.st_size, status.st_mtime_ns, status.st_ino)
            if key not in _CONTENTS:
                _CONTENTS[key] = _read_content(stream, quotechar)
            return _CONTENTS[key]


class _RemoteFile:
    """
    A file behind fsspec.

    What was read since the last `at` is kept: a chunk that is tried again asks nobody, and begins where it began.
    """

    is_local = False

    def __init__(self, url: str, options: dict[str, object]) -> None:
        self.name = url
        self._url = url
        self._options = options
        self._stream: BinaryIO | None = None
        self._filesystem: Any = None
        self._path = ""
        self._size = 0
        self._version: dict[str, Json] = {}
        self._content: _Content | None = None
        #: a part of the file, where in the file it begins, and where in the part the next line does
        self._part = b""
        self._begin = 0
        self._next = 0

    def at(self, offset: int) -> Readable:
        self._open()
        if not self._begin <= max(0, offset - 1) < self._begin + len(self._part):
            self._part, self._begin = b"", max(0, offset - 1)
            if offset <= self._size:
                self._load()
        # One byte in front of the line stays, to tell that the line begins there.
        spare = max(0, offset - 1 - self._begin)
        self._part, self._begin = self._part[spare:], self._begin + spare
        self._next = offset - self._begin
        _check_offset(self.name, offset, size=self._size, before=self._part[:1] if offset else b"\n")
        if not offset:
            _check_not_packed(self.name, self._part[:8])
        return self

    def moved_to(self, offset: int) -> None:
        """Do nothing: `readline` knows."""

    def readline(self) -> bytes:
        searched = self._next
        while (end := self._part.find(b"\n", searched)) < 0 and self._begin + len(self._part) < self._size:
            searched = len(self._part)
            self._load()
        end = len(self._part) if end < 0 else end + 1
        line = self._part[self._next : end]
        self._next = end
        return line

    def size(self) -> int:
        self._open()
        return self._size

    def line_from(self, offset: int) -> int:
        return _line_from(self.stream(), offset)

    def check(self) -> None:
        if self._describe() != (self._size, self._version):
            raise _changed(self.name)

    def records(self, *, quotechar: str) -> int:
        """Guess from the beginning of the file: it need not be read to its end for that."""
        self._open()
        content = self._content
        if content is None:
            self._part, self._begin = b"", 0
            self._load()
            content = _read_content(io.BytesIO(self._part), quotechar)
            if content.size < self._size:
                return Estimate(round(content.lines * self._size / content.size))
        return Estimate(content.lines) if content.has_quotes else content.lines

    def fingerprint(self, *, quotechar: str | None = None) -> dict[str, Json]:
        self._open()
        if self._version:
            return {"size": self._size, **self._version}
        if self._content is None:
            # Nothing tells this content from another but the content.
            stream = self.stream()
            stream.seek(0)
            self._content = _read_content(stream, quotechar)
        return {"size": self._content.size, "digest": self._content.digest}

    def anew(self) -> File:
        return _RemoteFile(self._url, self._options)

    def stream(self) -> BinaryIO:
        self._open()
        if self._stream is None:
            stream: BinaryIO = self._asked(lambda: self._filesystem.open(self._path, "rb"))
            weakref.finalize(self, stream.close)
            self._stream = stream
        return self._stream

    def _open(self) -> None:
        if self._filesystem is None:
            self._filesystem, self._path = self._asked(self._resolve)
            self._size, self._version = self._describe()

    def _resolve(self) -> Any:  # noqa: ANN401
        try:
            # Here, since the extra `files` brings it.
            return importlib.import_module("fsspec.core").url_to_fs(self._url, **self._options)
        except (ImportError, ValueError, TypeError) as error:
            raise InvalidSource(
                f"{self.name} cannot be opened: {error}; install the package that knows such URLs (s3fs, gcsfs, "
                f"adlfs), and give what it is to be told as storage_options={{...}}"
            ) from error

    def _describe(self) -> tuple[int, dict[str, Json]]:
        # What a listing said earlier may be out of date.
        self._filesystem.invalidate_cache(self._path)
        info: Mapping[str, Any] = self._asked(lambda: self._filesystem.info(self._path))
        if info.get("type", "file") != "file":
            raise InvalidSource(f"{self.name} is no file but a {info['type']}; give the URL of one file")
        if not isinstance(info.get("size"), int):
            raise InvalidSource(
                f"{self.name} does not tell its size, so it cannot be entered in the middle; copy it to a file first"
            )
        return info["size"], _version_of(info)

    def _asked(self, ask: Callable[[], Any]) -> Any:  # noqa: ANN401
        try:
            return ask()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise InvalidSource(
                f"{self.name} cannot be read ({error}); give a URL that every worker can open"
            ) from error

    def _load(self) -> None:
        """Read the next block of the part."""
        stream = self.stream()
        end = self._begin + len(self._part)
        stream.seek(end)
        block = stream.read(min(_BLOCK, self._size - end))
        # After it: what was read before a change that is seen now is not used.
        self.check()
        if not block and end < self._size:
            raise _changed(self.name)
        self._part += block


def _line_from(stream: BinaryIO, offset: int) -> int:
    if offset <= 0:
        return 0
    # With the byte in front of it, which may be the end of a line.
    stream.seek(offset - 1)
    return offset - 1 + len(stream.readline())


def _version_of(info: Mapping[str, Any]) -> dict[str, Json]:
    """Take what tells one content from another, or at least one writing: filesystems spell it in their own ways."""
    known = {"".join(filter(str.isalnum, name)).lower(): value for name, value in info.items() if value}
    # One of them: others, such as an etag beside a checksum, may change though the content has not.
    return next(({name: str(known[name])} for name in (*_BY_CONTENT, *_BY_WRITING) if name in known), {})


def _check_not_packed(name: str, beginning: bytes) -> None:
    for magic, kind in _PACKED.items():
        if beginning.startswith(magic):
            raise InvalidSource(
                f"{name} is packed with {kind}, so it cannot be entered in the middle; unpack it to a file first, or "
                f"read it with stream(...), which begins anew and skips what was done"
            )


def _check_offset(name: str, offset: int, *, size: int, before: bytes) -> None:
    if offset > size:
        raise InvalidSource(f"{name} ends at byte {size}, before the cursor at {offset}; it was changed")
    if before != b"\n" and offset != size:
        raise InvalidSource(
            f"in {name} no line begins at byte {offset}, so that is no cursor of it; a cursor is where a record ended"
        )


def _changed(name: str) -> InvalidSource:
    return InvalidSource(f"{name} was changed while it was read; let it be written to the end first")


def _status(stream: BinaryIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def _read_content(stream: BinaryIO, quotechar: str | None) -> _Content:
    digest = hashlib.blake2b(digest_size=16)
    size = lines = 0
    has_quotes = False
    quote = (quotechar or "").encode()
    # Lines of a CSV file that hold spaces are records; only empty ones are not.
    blank = b"\r\n" if quote else None
    # What is no text may have no lines to speak of.
    read = (lambda: [stream.read(_BLOCK)]) if quotechar is None else (lambda: stream.readlines(_BLOCK))
    for line_block in iter(read, [b""] if quotechar is None else []):
        for line in line_block:
            digest.update(line)
            size += len(line)
            lines += bool(line.strip(blank))
            has_quotes = has_quotes or (bool(quote) and quote in line)
    return _Content(size=size, digest=digest.hexdigest(), lines=lines, has_quotes=has_quotes)
