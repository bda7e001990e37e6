"""Files behind fsspec: the same records as in local ones, read from the cursor on, and no change unnoticed."""

from __future__ import annotations

import gzip
import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import csv_rows, json_lines
from batchkit.errors import InvalidSource
from batchkit.sources import Counted, Estimate, Fingerprinted, Prefetching, Stateful, storage

NO_SESSION = cast("Session", None)


class Meter(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A filesystem that notes which bytes were read, and describes files as S3 does if it is told to."""

    protocol = "meter"
    cachable = False
    reads: list[tuple[int, int]] = []  # noqa: RUF012  of the class, since each URL makes an object of its own
    tag: str | None = None

    def __init__(self, *args: Any, tag: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = tag

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        opened = super()._open(path, mode, **kwargs)
        if mode != "rb":
            return opened
        read = opened.read

        def noting(size: int = -1) -> bytes:
            begin = opened.tell()
            content: bytes = read(size)
            Meter.reads.append((begin, begin + len(content)))
            return content

        return _Opened(opened, noting)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **kwargs)
        if self.tag == "none":
            return {name: found[name] for name in ("name", "size", "type")}
        return found


class _Opened:
    def __init__(self, opened: Any, read: Callable[[int], bytes]) -> None:
        self._opened, self.read = opened, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


fsspec.register_implementation("meter", Meter)


@pytest.fixture
def url() -> str:
    """Give a URL at which nothing is yet."""
    Meter.reads.clear()
    return f"meter://{uuid.uuid4().hex}/x"


def _write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as stream:
        stream.write(content)


def _walk(make: Callable[[], Any], *, limit: int) -> list[Any]:
    found: list[Any] = []
    after = None
    while True:
        source = make()
        source.prefetch(after, limit)
        read = source.read(after, limit, NO_SESSION)
        if not read:
            return found
        found += [item for item, _ in read]
        after = read[-1][1]


@given(
    values=st.lists(st.text(max_size=30), max_size=30),
    limit=st.integers(1, 5),
    block=st.integers(1, 60),
    is_one_slice=st.booleans(),
    end=st.booleans(),
)
def test_each_record_comes_once_wherever_the_blocks_end(
    values: list[str], limit: int, block: int, *, is_one_slice: bool, end: bool
):
    url = f"memory://{uuid.uuid4().hex}/x"
    _write(url, ("\n".join(json.dumps(value) for value in values) + ("\n" if end else "")).encode())
    usual, storage._BLOCK = storage._BLOCK, block  # noqa: SLF001  so that a small file has many of them
    try:
        one = json_lines(url)
        assert values == _walk(lambda: one if is_one_slice else json_lines(url), limit=limit)
    finally:
        storage._BLOCK = usual  # noqa: SLF001  the same


def test_csv_is_read_from_the_cursor_on_and_not_from_the_beginning(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "_BLOCK", 100)
    _write(url, b"a,b\n" + b"".join(b"%06d,x\n" % number for number in range(10_000)))
    after = 4 + 9 * 5_000
    source = csv_rows(url)
    assert isinstance(source, Prefetching)
    source.prefetch(after, 20)
    asked = list(Meter.reads)
    pairs = list(source.read(after, 20, NO_SESSION))
    assert [f"{number:06}" for number in range(5_000, 5_020)] == [item["a"] for item, _ in pairs]
    assert asked == Meter.reads, "what was prefetched was asked for again"
    header, *others = asked
    assert header == (0, 100)
    assert all(after - 1 <= begin and end <= after + 300 for begin, end in others), others


def test_another_try_asks_nobody_and_is_given_its_records_as_they_were(url: str):
    _write(url, b'{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    source = json_lines(url)
    for item, _ in source.read(None, 3, NO_SESSION):
        item["n"] = -1
    asked = len(Meter.reads)
    assert [{"n": 1}] == [item for item, _ in source.read(None, 1, NO_SESSION)]
    assert [{"n": 2}, {"n": 3}] == [item for item, _ in source.read(9, 5, NO_SESSION)]
    assert asked == len(Meter.reads)


def test_the_records_are_counted_or_guessed_from_the_beginning(url: str, monkeypatch: pytest.MonkeyPatch):
    _write(url, b"a\n" + b"12345678\n" * 1_000)
    source = csv_rows(url)
    assert isinstance(source, Counted)
    assert (1_000, int) == (source.count(NO_SESSION), type(source.count(NO_SESSION)))
    monkeypatch.setattr(storage, "_BLOCK", 900)
    guessed = csv_rows(url)
    assert isinstance(guessed, Counted)
    count = guessed.count(NO_SESSION)
    assert isinstance(count, Estimate)
    assert 950 < count < 1_050
    assert sum(end - begin for begin, end in Meter.reads[-1:]) <= 900


def _fingerprint(url: str, **options: Any) -> dict[str, Any]:
    source = json_lines(url, **options)
    assert isinstance(source, Fingerprinted)
    return source.fingerprint()


@pytest.mark.parametrize("tag", [None, "none"])
def test_the_fingerprint_tells_a_changed_file_by_what_the_filesystem_says_or_by_its_content(url: str, tag: str | None):
    options = {"storage_options": {"tag": tag}}
    _write(url, b"1\n2\n")
    first = _fingerprint(url, **options)
    assert first == _fingerprint(url, **options)
    assert ("digest" in first) == (tag == "none")
    _write(url, b"1\n3\n")
    assert first != _fingerprint(url, **options)


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"ETag": '"abc"', "LastModified": "today", "VersionId": None}, {"etag": '"abc"'}),
        ({"md5Hash": "xyz", "etag": "CJ=", "generation": "1"}, {"md5hash": "xyz"}),
        ({"Content-MD5": "q", "Last-Modified": "today"}, {"contentmd5": "q"}),
        ({"last_modified": "today"}, {"lastmodified": "today"}),
        ({"mtime": 1.5, "created": 2.5, "ino": 3}, {"mtime": "1.5"}),
        ({"name": "x"}, {}),
    ],
)
def test_filesystems_name_versions_in_their_own_ways(info: dict[str, Any], version: dict[str, str]):
    assert version == storage._version_of(info)  # noqa: SLF001  no cloud is there to be asked


@pytest.mark.parametrize("content", [b"1\n2\n", b"1\n" * 500, b"9\n" * 400], ids=["shorter", "longer", "as long"])
def test_a_file_that_changes_between_two_blocks_is_refused(url: str, monkeypatch: pytest.MonkeyPatch, content: bytes):
    monkeypatch.setattr(storage, "_BLOCK", 10)
    _write(url, b"1\n" * 400)
    source = json_lines(url)
    assert 3 == len(list(source.read(None, 3, NO_SESSION)))
    _write(url, content)
    with pytest.raises(InvalidSource, match="was changed while it was read"):
        source.read(6, 100, NO_SESSION)
    if len(content) < 20:
        with pytest.raises(InvalidSource, match="before the cursor"):
            json_lines(url).read(20, 1, NO_SESSION)


def test_packed_files_are_refused_with_the_mend(url: str, tmp_path: Path):
    packed = gzip.compress(b"a\n1\n")
    _write(url, packed)
    (tmp_path / "x.csv.gz").write_bytes(packed)
    for path in (url, tmp_path / "x.csv.gz"):
        for source in (csv_rows(path), json_lines(path)):
            with pytest.raises(InvalidSource, match=r"packed with gzip.*unpack it.*stream"):
                source.read(None, 1, NO_SESSION)


def test_a_place_where_no_line_begins_is_no_cursor(url: str, tmp_path: Path):
    content = b'{"a": 11}\n{"a": 22}\n{"a": 33}'
    _write(url, content)
    (tmp_path / "x").write_bytes(content)
    for path in (url, tmp_path / "x"):
        with pytest.raises(InvalidSource, match="no line begins at byte 8"):
            json_lines(path).read(8, 1, NO_SESSION)
        assert [({"a": 22}, 20)] == list(json_lines(path).read(10, 1, NO_SESSION))
        assert [] == list(json_lines(path).read(len(content), 1, NO_SESSION))


def test_a_torn_last_line_and_a_bad_byte_are_named_with_their_place(url: str):
    _write(url, b'{"a": 1}\n{"a": ')
    with pytest.raises(InvalidSource, match=rf"{url}, byte 9: .*not written to its end"):
        json_lines(url).read(9, 1, NO_SESSION)
    _write(url, b"a\n1\n\xff\n")
    with pytest.raises(InvalidSource, match=rf"{url}, byte 4: .* is not utf-8"):
        csv_rows(url).read(4, 1, NO_SESSION)


def test_what_is_not_there_or_no_file_or_of_no_known_kind_is_named(url: str):
    with pytest.raises(InvalidSource, match=f"{url} cannot be read"):
        csv_rows(url).read(None, 1, NO_SESSION)
    _write(f"{url}/inside", b"1\n")
    with pytest.raises(InvalidSource, match="is no file but a directory"):
        csv_rows(url).read(None, 1, NO_SESSION)
    with pytest.raises(InvalidSource, match=r"warp://x cannot be opened: .*install the package"):
        csv_rows("warp://x").read(None, 1, NO_SESSION)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InvalidSource, match=r"s3://b/x takes the package fsspec.*pip install 'batchkit-jobs\[files\]'"):
        csv_rows("s3://b/x")


def test_options_for_a_local_file_are_refused(tmp_path: Path):
    with pytest.raises(InvalidSource, match="storage_options are for URLs"):
        csv_rows(tmp_path / "x", storage_options={"key": "k"})


@pytest.mark.parametrize("is_remote", [True, False])
def test_a_source_made_anew_shares_nothing_with_the_one_it_was_made_of(url: str, tmp_path: Path, *, is_remote: bool):
    _write(url, b"a\n1\n2\n3\n")
    (tmp_path / "x").write_bytes(b"a\n1\n2\n3\n")
    source = csv_rows(url if is_remote else tmp_path / "x")
    assert isinstance(source, Stateful)
    first, second = source.anew(), source.anew()
    ((_, after),) = first.read(None, 1, NO_SESSION)
    assert [{"a": "3"}] == [item for item, _ in second.read(6, 1, NO_SESSION)]
    assert [{"a": "2"}] == [item for item, _ in first.read(after, 1, NO_SESSION)]
