"""The numbers from 1 on, out of each kind of source, for workers in other processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from sqlalchemy import Column, Integer, MetaData, Table, select

from batchkit import csv_rows, items, json_lines, nested, pages, parquet_rows, rows, stream
from batchkit.sources import Source

ITEMS = 600
_PAGE = 35
_GROUP = 50
#: How many numbers an outer item of a nested source stands for.
_INSIDE = 30

_item = Table("item", MetaData(), Column("id", Integer, primary_key=True))


@contextmanager
def origin(folder: Path) -> Iterator[str]:
    """Give a folder with files of the numbers, and a server that gives them page by page; as one text for both."""
    # Slow to import, and needed here alone: the workers of most tests have no use for it.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    every = range(1, ITEMS + 1)
    records = "".join(f'{number},"two\nlines, ü"\r\n' for number in every)
    (folder / "numbers.csv").write_bytes(f"number,text\r\n{records}".encode())
    (folder / "numbers.jsonl").write_text("".join(json.dumps({"number": number}) + "\n" for number in every))
    pq.write_table(pa.table({"number": list(every)}), folder / "numbers.parquet", row_group_size=_GROUP)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{folder}|http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Pages(BaseHTTPRequestHandler):
    """Gives /first/last/token."""

    def do_GET(self) -> None:
        """Give a page, and the token of the next one."""
        first, last, token = (int(part) for part in self.path.strip("/").split("/"))
        begin = first + token * _PAGE
        page = {"numbers": list(range(begin, min(begin + _PAGE, last + 1)))}
        content = json.dumps({**page, "next": token + 1 if begin + _PAGE <= last else None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Say nothing."""


def _paged(server: str, first: int, last: int, *, ahead: bool = False) -> Source[int]:
    def fetch(token: int | None) -> tuple[list[int], int | None]:
        with urlopen(f"{server}/{first}/{last}/{token or 0}", timeout=10) as reply:  # noqa: S310  our own
            page = json.load(reply)
        return page["numbers"], page["next"]

    return pages(fetch, ahead=ahead)


def _in_rows(inner: Callable[[int], Source[int]]) -> Source[tuple[int, int]]:
    return nested(rows(select(_item.c.id).where(_item.c.id % _INSIDE == 1), key=_item.c.id), inner)


#: Each kind of source, made of a folder and a server.
KINDS: dict[str, Callable[[str, str], Source[Any]]] = {
    "csv_rows": lambda folder, _: csv_rows(f"{folder}/numbers.csv"),
    "csv_rows-url": lambda folder, _: csv_rows(f"file://{folder}/numbers.csv"),
    "json_lines": lambda folder, _: json_lines(f"{folder}/numbers.jsonl"),
    "parquet_rows": lambda folder, _: parquet_rows(f"{folder}/numbers.parquet"),
    "parquet_rows-url": lambda folder, _: parquet_rows(f"file://{folder}/numbers.parquet"),
    "pages": lambda _, server: _paged(server, 1, ITEMS),
    "pages-ahead": lambda _, server: _paged(server, 1, ITEMS, ahead=True),
    "stream": lambda _, __: stream(lambda: range(1, ITEMS + 1)),
    "nested-items": lambda _, __: _in_rows(lambda first: items(list(range(first, first + _INSIDE)))),
    "nested-pages": lambda _, server: _in_rows(lambda first: _paged(server, first, first + _INSIDE - 1)),
}


def numbers(kind: str, place: str) -> Source[Any]:
    """Take the numbers out of a source of a kind, at a place that `origin` gave."""
    folder, server = place.split("|")
    return KINDS[kind](folder, server)


def folder_of(place: str) -> str:
    """Give the folder of a place that `origin` gave."""
    return place.partition("|")[0]


def number_of(given: Any) -> int:
    """Give the number that an item of any of them stands for."""
    inner = given[1] if isinstance(given, tuple) else given
    return int(inner["number"] if isinstance(inner, dict) else inner)
