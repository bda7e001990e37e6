"""What the pages on KEDA and Kubernetes show, works as it is written there."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask
from sqlalchemy import create_engine, text
from werkzeug.test import Client

from batchkit import BatchKit
from batchkit.queues import LocalQueue

_HOOKS = Path(__file__).parents[2] / "docs" / "hooks"


def _block(page: str, kind: str = "python") -> str:
    (block,) = re.findall(rf"```{kind}\n(.*?)```", (_HOOKS / page).read_text(), re.DOTALL)
    return str(block)


def test_the_page_on_kubernetes_makes_a_kit_with_both_hooks(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", sqlite_url)
    names: dict[str, Any] = {"app": Celery("shop", set_as_current=False)}
    exec(_block("kubernetes.md"), names)  # noqa: S102  our own page
    with closing(names["kit"]) as kit:
        assert ["BusyEndpoint", "PodDeletionCost"] == [type(each).__name__ for each in kit._busy_hooks]  # noqa: SLF001  nobody else tells


def test_the_page_on_keda_mounts_the_numbers_in_an_app(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=LocalQueue())) as kit:
        kit.migrate()
        app = Flask("shop")
        exec(_block("keda.md"), {"app": app, "kit": kit})  # noqa: S102  our own page
        with Client(app.wsgi_app).get("/batchkit/v1/busy") as response:
            assert 200 == response.status_code


def test_what_the_page_on_keda_grants_is_enough_and_no_more(postgres_url: str):
    with closing(BatchKit(postgres_url, queue=LocalQueue())) as kit:
        kit.migrate()
        kit.make_busy_view()
    engine = create_engine(postgres_url)
    try:
        with engine.begin() as tx:
            for statement in _block("keda.md", "sql").split(";\n"):
                if statement.strip():
                    tx.execute(text(statement))
            tx.execute(text("SET LOCAL ROLE keda"))
            assert [] == tx.execute(text("SELECT queue, wanted FROM batchkit_busy")).all()
            allowed = text("SELECT has_table_privilege('batchkit_run', 'SELECT')")
            assert not tx.execute(allowed).scalar_one()
            # Roles are of the whole server: the next test has none of them.
            tx.rollback()
    finally:
        engine.dispose()
