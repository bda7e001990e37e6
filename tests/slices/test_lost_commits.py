"""A COMMIT whose reply never came is decided by what the database says, and no chunk is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import insert

from batchkit import BatchKit, Chunk, Finish, RunState, Steps, resumable, span
from batchkit.queues import InlineQueue
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import CommitCutter, Cut, cutter
from tests.slices.conftest import Ledger, job, ledger, write


@pytest.fixture
def ledger_there(server_url: str) -> Iterator[Ledger]:
    """Give the ledger, reached without the wire that is cut."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def wire(server: PostgresServer | MariaDbServer) -> Iterator[CommitCutter]:
    """Give a wire to the server that can be cut."""
    with cutter(server.port) as made:
        yield made


@pytest.fixture
def kit_on_wire(server: PostgresServer | MariaDbServer, server_url: str, wire: CommitCutter) -> Iterator[BatchKit]:
    """Give a kit whose every word goes over the wire."""
    url = server_url.replace(f":{server.port}/", f":{wire.port}/")
    with closing(BatchKit(url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.mark.parametrize("cut", list(Cut))
def test_a_cut_at_the_commit_of_a_chunk_loses_and_doubles_nothing(
    kit_on_wire: BatchKit, ledger_there: Ledger, wire: CommitCutter, cut: Cut
):
    armed: set[int] = set()

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number % 3 == 0 and chunk.number not in armed:
            armed.add(chunk.number)
            wire.arm(cut)

    run = job(span(300), work, chunk_size=10).start()
    assert 10 == wire.cuts
    assert (RunState.SUCCEEDED, 300) == (run.state, run.progress.done)
    assert list(range(300)) == ledger_there.items()


@pytest.mark.parametrize("cut", list(Cut))
def test_a_cut_at_the_commit_of_a_step_or_of_the_last_one_loses_and_doubles_nothing(
    kit_on_wire: BatchKit, ledger_there: Ledger, wire: CommitCutter, cut: Cut
):
    armed: set[int] = set()
    called: list[int] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        item = steps.cursor or 0
        while True:
            steps.connection.execute(insert(ledger), [{"item": item}])
            steps.after_commit(lambda: called.append(steps.number))
            if steps.number % 3 == 0 and steps.number not in armed:
                armed.add(steps.number)
                wire.arm(cut)
            item += 1
            if item == 12:
                return
            yield item

    run = resumable(name=f"tests.steps_{cut.name}")(count).start()
    assert (4, {3, 6, 9, 12}) == (wire.cuts, armed)
    assert (RunState.SUCCEEDED, 12) == (run.state, run.progress.done)
    assert list(range(12)) == ledger_there.items()
    assert 12 == len(called)


@pytest.mark.parametrize("cut", list(Cut))
def test_a_cut_at_the_commit_of_finish_does_it_once(
    kit_on_wire: BatchKit, ledger_there: Ledger, wire: CommitCutter, cut: Cut
):
    tries: list[int] = []

    def finish(finish: Finish) -> int:
        finish.connection.execute(insert(ledger), [{"item": -1}])
        if not tries:
            wire.arm(cut)
        tries.append(1)
        return finish.done

    run = job(span(5), write, finish=finish).start()
    assert (1, RunState.SUCCEEDED, 5) == (wire.cuts, run.state, run.result)
    assert [-1, *range(5)] == ledger_there.items()
    assert (2 if cut is Cut.BEFORE_SERVER else 1) == len(tries)
