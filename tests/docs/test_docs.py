"""What the documents say is there, is there; and what they show, runs."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from celery import Celery, _state
from sqlalchemy import Engine

from batchkit import BatchKit
from batchkit.cli import app

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]


def _commands() -> list[str]:
    group = typer.main.get_command(app)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    return names


@pytest.mark.parametrize("command", _commands())
def test_each_command_is_documented_and_has_help(command: str):
    page = (_ROOT / "docs" / "cli.md").read_text()
    assert re.search(rf"`{command}[ `]", page), f"docs/cli.md does not name {command}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_files_that_are_named_exist(page: Path):
    for name in re.findall(r"`((?:batchkit|docs|examples|tests|migrations)/[\w/.-]+)`", page.read_text()):
        assert (_ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_python_in_the_documents_is_python(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


_MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase): ...
class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    domain: Mapped[str]
"""


def _readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_kits_on_celery_and_rq_are_built_as_they_are_written(sqlite_url: str):
    of_queues = [block for block in _readme_blocks() if "queue=" in block]
    for block, queue in zip(of_queues, ("CeleryQueue", "RQQueue"), strict=True):
        names: dict[str, Any] = {}
        exec(block.replace("postgresql+psycopg://localhost/app", sqlite_url), names)  # noqa: S102  our own README
        with closing(names["kit"]) as kit:
            kit.migrate()
            assert queue == type(kit.queue).__name__


def test_the_readmes_app_works_as_it_is_written(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    jobs, calls, starting, failing, each, steps, *rest = _readme_blocks()
    package = tmp_path / "readme_app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(_MODELS)
    jobs = jobs.replace("app.models", "readme_app.models").replace("postgresql+psycopg://localhost/app", sqlite_url)
    (package / "jobs.py").write_text(jobs)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("readme_app.jobs")
    kit: BatchKit = module.kit
    with closing(kit):
        kit.migrate()
        engine = kit._store.database.engine  # noqa: SLF001  the README's users have theirs
        module.User.metadata.create_all(engine)
        with engine.begin() as tx:
            tx.execute(module.User.__table__.insert(), [{"id": 1, "email": "A@EXAMPLE.COM", "domain": "example.com"}])
        exec(calls.replace("run.pause()", "run.pause().resume()"), vars(module))  # noqa: S102  our own README
        assert 1 == module.normalize_emails(domain="example.com").progress.done
        vars(module)["engine"] = engine
        exec(starting, vars(module))  # noqa: S102  our own README
        assert [True, False, False] == [run.is_dry_run for run in kit.runs(limit=3)]
        # A task of the user's goes to each Celery app of the process, those of other tests too.
        monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))  # noqa: SLF001  no other way
        _check_page_on_starting(module, engine)
        exec(failing, vars(module))  # noqa: S102  our own README
        assert 1 == module.notify(domain="example.com").progress.done
        exec(each, vars(module))  # noqa: S102  our own README
        assert 1 == module.welcome(domain="example.com").progress.done
        throttling = next(block for block in rest if "Throttle(" in block)
        exec(throttling, vars(module))  # noqa: S102  our own README; its holds need PostgreSQL, so it is not run
        assert module.kind.rate == 1000
        pages = {None: ([module.User(email="b@example.com", domain="crawled")], "2"), "2": ([], None)}
        vars(module)["list_users"] = lambda domain, after: pages[after]
        exec(steps, vars(module))  # noqa: S102  our own README
        assert 2 == module.crawl(domain="crawled").progress.done
        hooked = next(block for block in rest if "RunHook" in block).replace(
            "postgresql+psycopg://localhost/app", sqlite_url
        )
        exec(hooked, vars(module))  # noqa: S102  our own README
        with closing(module.kit):
            assert 1 == module.welcome(domain="example.com").progress.done
    sys.modules.pop("readme_app.jobs")


def _check_page_on_starting(module: Any, engine: Engine) -> None:
    """Run what docs/starting.md shows, in an app whose module is the README's."""
    page = (_ROOT / "docs" / "starting.md").read_text()
    *blocks, beat, rq = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(block, vars(module))  # noqa: S102  our own page
    assert module.run.was_joined
    assert module.trial.is_dry_run
    with Celery("page", set_as_current=False) as module.celery:
        exec(beat, vars(module))  # noqa: S102  the same
        module.clean_nightly()
        module.clean_nightly()
        exec(rq, vars(module))  # noqa: S102  the same
    nightly = [run for run in module.kit.runs() if "nightly" in run.history()[0].reason]
    assert 1 == len(nightly), "it was called twice"


def test_each_decision_has_its_parts():
    for page in (_ROOT / "docs" / "decisions").glob("*.md"):
        text = page.read_text()
        for part in ("**Status:**", "**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, f"{page.name} lacks {part}"
