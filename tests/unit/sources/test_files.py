"""Files by byte offset: the same records as a plain reader gives, from behind any of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from batchkit import csv_rows, json_lines
from batchkit.errors import InvalidSource
from batchkit.sources import Counted, Estimate, Fingerprinted, Source

#: Files are not read through it.
NO_SESSION = cast("Session", None)


def _walk(make: Any, *, limit: int) -> list[Any]:
    """Read to the end, each time with a source made anew, as slices do."""
    found: list[Any] = []
    after = None
    while True:
        source: Source[Any] = make()
        read = list(source.read(after, limit, NO_SESSION))
        if not read:
            return found
        found += [item for item, _ in read]
        after = read[-1][1]


_FIELD = st.text(
    st.characters(exclude_characters="\x00\r", exclude_categories=["Cs"]) | st.sampled_from('",\n;é€'), max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    records=st.lists(st.lists(_FIELD, min_size=2, max_size=2), max_size=12),
    limit=st.integers(1, 5),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    is_torn=st.booleans(),
)
def test_csv_records_are_those_of_dictreader_however_the_file_is_cut(
    tmp_path: Path, records: list[list[str]], limit: int, end: str, *, bom: bool, is_torn: bool
):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([["a", "b"], *records])
    content = text.getvalue().removesuffix(end) if is_torn and records else text.getvalue()
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode("utf-8-sig" if bom else "utf-8"))

    wanted = list(csv.DictReader(io.StringIO(content, newline=""), restval=""))
    assert wanted == _walk(lambda: csv_rows(path), limit=limit)
    source = csv_rows(path)
    assert isinstance(source, Counted)
    count = source.count(NO_SESSION)
    assert isinstance(count, Estimate) or count == len(wanted)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", []),
        (b"a,b\n", []),
        (b"a,b", []),
        (b"a,b\n\n\n1,2\n\n", [{"a": "1", "b": "2"}]),
        (b"a,b\n1\n", [{"a": "1", "b": ""}]),
        (b"\xef\xbb\xbfa,b\n1,2", [{"a": "1", "b": "2"}]),
        (b'a,b\n"x\n\ny",2\n', [{"a": "x\n\ny", "b": "2"}]),
        (b"a,b\n" + b"x" * 200_000 + b",2\n", [{"a": "x" * 200_000, "b": "2"}]),
    ],
)
def test_awkward_but_good_files(tmp_path: Path, content: bytes, wanted: list[dict[str, str]]):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert wanted == _walk(lambda: csv_rows(path), limit=1)


def test_options_of_the_dialect(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_bytes("'a;1';\xe9\n".encode("latin-1"))
    source = lambda: csv_rows(path, encoding="latin-1", delimiter=";", quotechar="'", fieldnames=["x", "y"])  # noqa: E731
    assert [{"x": "a;1", "y": "é"}] == _walk(source, limit=5)
    path.write_bytes(b"a,b\n\xff,2\n")
    assert [{"a": "\ufffd", "b": "2"}] == _walk(lambda: csv_rows(path, errors="replace"), limit=5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,b\n1,2\n\xff\xfe,3\n", r"byte 8: .* is not utf-8 .*errors=\"replace\""),
        (b"a,b\n1,2,3\n", "has 3 fields and the header 2"),
        (b"a,b\n1,\x002\n", "NUL byte"),
        (b"a,a\n1,2\n", "names a twice.*fieldnames"),
        (b"a,\n1,2\n", "a field without a name"),
    ],
)
def test_bad_files_are_refused_with_the_place_and_the_mend(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidSource, match=problem) as refused:
        _walk(lambda: csv_rows(path), limit=1)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_encodings_that_cannot_be_entered_in_the_middle_are_refused(tmp_path: Path, encoding: str):
    with pytest.raises(InvalidSource, match="iconv"):
        csv_rows(tmp_path / "x", encoding=encoding)


def test_unknown_encodings_and_error_handlers_are_refused(tmp_path: Path):
    with pytest.raises(InvalidSource, match="unknown encoding"):
        csv_rows(tmp_path / "x", encoding="klingon")
    with pytest.raises(InvalidSource, match="unknown error handler"):
        csv_rows(tmp_path / "x", errors="shrug")


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path: Path):
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(InvalidSource, match=f"{path.name} cannot be read"):
            _walk(lambda path=path: csv_rows(path), limit=1)


@pytest.mark.parametrize("content", ["1\n", "1\n2\n3\n4\n"], ids=["shorter", "longer"])
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "x.jsonl"
    path.write_text("1\n2\n3\n")
    source = json_lines(path)
    ((item, after),) = source.read(None, 1, NO_SESSION)
    assert 1 == item
    path.write_text(content)
    with pytest.raises(InvalidSource, match="was changed while it was read"):
        source.read(after, 1, NO_SESSION)
    with pytest.raises(InvalidSource, match="before the cursor"):
        json_lines(path).read(9, 1, NO_SESSION)


def test_the_fingerprint_is_of_the_content_and_not_of_the_time(tmp_path: Path):
    path = tmp_path / "x.jsonl"

    def fingerprint() -> object:
        source = json_lines(path)
        assert isinstance(source, Fingerprinted)
        return source.fingerprint()

    path.write_text("1\n2\n")
    first = fingerprint()
    path.write_text("1\n3\n")
    assert first != fingerprint()
    path.write_text("1\n2\n")
    assert first == fingerprint()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(st.recursive(st.integers() | st.text() | st.none(), st.lists, max_leaves=4), max_size=12),
    limit=st.integers(1, 5),
    blank=st.sampled_from(["", "\n", "  \n\n"]),
    end=st.booleans(),
)
def test_json_lines_are_all_there_however_the_file_is_cut(
    tmp_path: Path, values: list[Any], limit: int, blank: str, *, end: bool
):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    path.write_bytes((blank + f"\n{blank}".join(lines) + ("\n" if end else "")).encode(errors="surrogatepass"))
    if any(0xD800 <= ord(char) < 0xE000 for line in lines for char in line):
        return
    assert values == _walk(lambda: json_lines(path), limit=limit)
    source = json_lines(path)
    assert isinstance(source, Counted)
    assert len(values) == source.count(NO_SESSION)


def test_a_torn_last_line_is_refused_as_such_and_what_came_before_is_read(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    ((item, after),) = json_lines(path).read(None, 1, NO_SESSION)
    assert {"a": 1} == item
    with pytest.raises(InvalidSource, match=r"byte 9: .* is not JSON .*not written to its end"):
        json_lines(path).read(after, 1, NO_SESSION)
