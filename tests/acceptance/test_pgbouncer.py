"""pgbouncer in transaction mode gives each transaction another connection; nothing of ours may need one of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batchkit import BatchKit, RunState
from batchkit.store import Database, HeldConnection
from tests.acceptance import app
from tests.acceptance.workers import crew
from tests.servers.debian import PackagesNotFoundError
from tests.servers.pgbouncer import PgBouncer


@pytest.fixture
def bouncer_url(postgres_url: str) -> Iterator[str]:
    """Give the URL of an empty database, through pgbouncer."""
    try:
        bouncer = PgBouncer(postgres_url)
    except PackagesNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with closing(bouncer):
        yield bouncer.url


def test_runs_are_worked_through_pgbouncer_though_workers_are_killed(bouncer_url: str, tmp_path: Path):
    kit: BatchKit
    with closing(app.prepare(bouncer_url, items=5000)) as kit, crew(bouncer_url, tmp_path) as start:
        workers = [start() for _ in range(4)]
        run = app.count_items.start()
        workers[0].end()
        run.wait(timeout=100)
        assert RunState.SUCCEEDED == run.state
        assert {1: 5000} == app.times(bouncer_url)
        assert 5000 == run.progress.done
        assert kit.schema_version()[0] == kit.schema_version()[1]


def test_statements_are_prepared_only_where_nobody_stands_between(postgres_url: str, bouncer_url: str):
    for url, threshold in ((postgres_url, 5), (bouncer_url, None)):
        with closing(Database(url)) as database, closing(HeldConnection(database, "run")) as held:
            held.begin(idle=60)
            driver = held.connection.connection.driver_connection
            assert driver is not None
            assert threshold == driver.prepare_threshold
            # Behind each COMMIT a pooler is to have its connection back.
            assert (threshold is not None) is held.may_chain
            held.close()
            assert driver.prepare_threshold is None
