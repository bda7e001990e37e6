"""What the pages on testing and on exports show, runs, and says what they say."""

from __future__ import annotations

import gzip
import importlib
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, insert

from batchkit import BatchKit, Chunk, batched
from batchkit.sources import Source
from batchkit.testing import CrashTestFailed, run_inline

_DOCS = Path(__file__).parents[2] / "docs"
_APP = """
from pathlib import Path
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, insert, select
from batchkit import Chunk, Finish, Source, batched, rows
SENT = Path("{folder}") / "sent.txt"
metadata = MetaData()
customer = Table("customer", metadata, Column("id", Integer, primary_key=True))
invoice = Table("invoice", metadata, Column("customer_id", Integer), Column("month", String(7)))
def customers(month: str) -> Source[int]:
    return rows(select(customer.c.id), key=customer.c.id)
"""
_EXPORT = """
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from batchkit import Chunk, Finish, Source, batched, rows
class Base(DeclarativeBase): ...
class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
def all_users(path: str) -> Source[User]:
    return rows(select(User), key=User.id)
"""


def _blocks(page: str, kind: str = "python") -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (_DOCS / page).read_text(), re.DOTALL)


def _module(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


_SOURCES = """
import gzip
from typing import Any
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase): ...
class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]
def api_get(path: str, *, customer: int, after: str | None) -> dict[str, Any]:
    return {"data": [{"of": customer, "behind": after}], "next": None if after else "second"}
"""


@pytest.mark.timeout(180)
def test_the_page_on_testing_finds_the_bug_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inline, crash, functions, job = _blocks("testing.md")
    source = _APP.format(folder=tmp_path) + functions + job + crash
    module = _module("page_on_testing", source, tmp_path, monkeypatch)
    with pytest.raises(CrashTestFailed) as failed:
        module.test_billing_survives_crashes()
    (shown,) = _blocks("testing.md", "text")
    for line in shown.replace("CrashTestFailed: ", "").replace("app.billing", "page_on_testing").splitlines():
        assert line.strip() == "..." or line in str(failed.value)

    monkeypatch.chdir(tmp_path)
    before, after = inline.split("kit.migrate()\n")
    names = {"bill": module.bill}
    exec(before + "kit.migrate()\n", names)  # noqa: S102  our own page
    made: Any = names
    with closing(made["kit"]) as kit:
        engine: Engine = kit._store.database.engine  # noqa: SLF001  the page's users have theirs
        module.setup(engine)
        exec(after, names)  # noqa: S102  the same
        assert "succeeded" == made["run"].refresh().state


def test_the_page_on_exports_exports(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    (job,) = _blocks("exports.md")
    module = _module("page_on_exports", _EXPORT + job, tmp_path, monkeypatch)
    with closing(BatchKit(sqlite_url)) as kit:
        kit.migrate()
        engine: Engine = kit._store.database.engine  # noqa: SLF001  the page's users have theirs
        module.Base.metadata.create_all(engine)
        with engine.begin() as tx:
            tx.execute(insert(module.User), [{"id": 1, "email": "a@example.com"}])
        assert 33 == run_inline(module.export_users, path=str(tmp_path / "users.jsonl")).result
    assert '{"id":1,"email":"a@example.com"}\n' == (tmp_path / "users.jsonl").read_text()


def test_the_page_on_sources_gives_items_of_each(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    shown = "".join(_blocks("sources.md"))
    page = _module("page_on_sources", f"from __future__ import annotations\n{_SOURCES}{shown}", tmp_path, monkeypatch)
    for name, content in (("x.csv", b"a;b\n1;\xfc\n"), ("x.jsonl", b"[1]\n"), ("x.gz", gzip.compress(b"line\n"))):
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"id": [1], "value": [2], "note": ["no"]}), tmp_path / "x.parquet")
    invoices = [{"of": 5, "behind": None}, {"of": 5, "behind": "second"}]
    with closing(BatchKit(sqlite_url)) as kit:
        kit.migrate()
        engine: Engine = kit._store.database.engine  # noqa: SLF001  the page's users have theirs
        page.Base.metadata.create_all(engine)
        with engine.begin() as tx:
            tx.execute(insert(page.User), [{"id": 5, "domain": "example.com"}])
        for source, params, wanted in (
            (page.users, {"domain": "example.com"}, [5]),
            (page.countries, {}, ["at", "ch", "de"]),
            (page.years, {}, list(range(2015, 2025))),
            (page.uploaded, {"path": str(tmp_path / "x.csv")}, [{"a": "1", "b": "ü"}]),
            (page.exported, {"path": str(tmp_path / "x.jsonl")}, [[1]]),
            (page.measured, {"path": str(tmp_path / "x.parquet")}, [{"id": 1, "value": 2}]),
            (page.invoices, {"customer": 5}, invoices),
            (page.log_lines, {"path": str(tmp_path / "x.gz")}, ["line\n"]),
            (page.invoices_of_users, {"domain": "example.com"}, [(5, invoice) for invoice in invoices]),
        ):
            assert wanted == _taken(source(**params), name=source.__name__)
        assert list(range(10)) == _taken(page.Numbers(10), name="numbers", partitions=3)


def _taken(source: Source[Any], *, name: str, partitions: int = 1) -> list[Any]:
    """Give what a job gets from a source."""
    found: list[Any] = []

    def take(chunk: Chunk[Any]) -> None:
        found.extend(_plain(each) for each in chunk)

    run = run_inline(batched(source, name=f"page.{name}", partitions=partitions)(take))
    assert partitions == len(run.partitions())
    assert "succeeded" == run.state, run.error
    return found


def _plain(item: Any) -> Any:
    """Give the id for a user, since its session ends with the chunk."""
    if isinstance(item, tuple):
        return tuple(_plain(each) for each in item)
    return getattr(item, "id", item)
