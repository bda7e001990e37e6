"""What a chunk offers for effects outside of its transaction: keys, calls after the commit, protection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from batchkit import BatchKit, Chunk, RunState, items, span
from batchkit.job import JOBS
from batchkit.queues import InlineQueue
from batchkit.stopping import Stop
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Cut, cutter
from tests.slices.conftest import Ledger, job, write


@pytest.fixture
def postgres_done(postgres_url: str) -> Iterator[Ledger]:
    """Give the ledger on PostgreSQL."""
    made = Ledger(postgres_url)
    yield made
    made.engine.dispose()


def test_an_item_keeps_its_key_through_crashes_and_chunks_of_other_sizes(kit: BatchKit, done: Ledger):
    keys: dict[int, set[str]] = {}
    bad = {33}

    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            keys.setdefault(item, set()).add(chunk.key(item))
        assert [chunk.key(item) for item in chunk] == [key for key, _ in chunk.keyed()]
        if bad & set(chunk):
            raise ValueError

    run = job(span(100), work, chunk_size=40, max_failures=1).start()
    assert RunState.SUCCEEDED == run.state
    bad.clear()
    run.retry_failures()
    assert {1} == {len(each) for each in keys.values()}
    assert 100 == len({key for each in keys.values() for key in each})
    assert all(key.startswith(f"{run.id}-") and len(key) == 47 for each in keys.values() for key in each)

    before = dict(keys)
    keys.clear()
    run.rerun()
    assert not before[1] & keys[1]


def test_equal_items_have_keys_of_their_own_and_cannot_be_asked_for_by_value(kit: BatchKit, done: Ledger):
    seen: list[str] = []

    def work(chunk: Chunk[str]) -> None:
        seen.extend(key for key, _ in chunk.keyed())
        with pytest.raises(ValueError, match=r"stands 2 times in this chunk; .* chunk\.keyed\(\)"):
            chunk.key("ab")

    assert RunState.SUCCEEDED == job(items(["ab", "ab", "c"]), work).start().state
    assert 3 == len(set(seen))


def test_what_is_to_be_called_after_the_commit_sees_it_and_hurts_nothing(kit: BatchKit, done: Ledger):
    counts: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.after_commit(lambda: counts.append(done.count()))
        chunk.after_commit(lambda: 1 / 0)
        chunk.after_commit(lambda: counts.append(-1))

    run = job(span(20), work, chunk_size=10).start()
    assert RunState.SUCCEEDED == run.state
    assert [10, -1, 20, -1] == counts


def test_what_was_rolled_back_calls_nobody(kit: BatchKit, done: Ledger):
    called: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        number, size = chunk.number, len(chunk)
        chunk.after_commit(lambda: called.append(size))
        if 3 in chunk:
            raise ValueError(number)

    run = job(span(10), work, chunk_size=10, max_failures=1).start()
    assert 9 == sum(called) == run.progress.done


@pytest.mark.parametrize("cut", list(Cut))
def test_after_a_lost_reply_they_are_called_once_it_is_known_what_happened(
    postgres_server: PostgresServer, postgres_url: str, postgres_done: Ledger, cut: Cut
):
    called: list[int] = []
    armed: set[int] = set()
    with cutter(postgres_server.port) as wire:

        def work(chunk: Chunk[int]) -> None:
            write(chunk)
            number = chunk.number
            chunk.after_commit(lambda: called.append(number))
            if number == 2 and number not in armed:
                armed.add(number)
                wire.arm(cut)

        url = postgres_url.replace(f":{postgres_server.port}/", f":{wire.port}/")
        with closing(BatchKit(url, queue=InlineQueue())) as kit:
            kit.migrate()
            run = job(span(30), work, chunk_size=10).start()
            assert (RunState.SUCCEEDED, 1) == (run.state, wire.cuts)
    assert [1, 2, 3] == called
    assert list(range(30)) == postgres_done.items()


def test_a_protected_part_is_not_cut_short_and_what_comes_behind_it_is(database_url: str):
    # The grace is over at once: what is not protected is cut.
    with closing(BatchKit(database_url, queue=InlineQueue(), grace=2.5)) as kit, Stop() as stop:
        kit.migrate()
        reached: list[str] = []

        def work(chunk: Chunk[int]) -> None:
            with chunk.protected():
                stop.request("SIGTERM")
                # Longer than the grace.
                never.wait(3.5)
                reached.append("the end of the protected part")
            reached.append("behind it")

        with Stop() as never:
            made = job(span(2), work, chunk_size=1)
            run = kit.start_run_here(JOBS[made.name], "{}")
            kit.work_run(run.id, stop=stop)
        assert (RunState.QUEUED, 0) == (run.refresh().state, run.progress.done)
        assert ["the end of the protected part"] == reached
