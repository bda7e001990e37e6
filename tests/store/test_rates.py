"""Reservations at a run's rate, on each database."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from batchkit.model import RunId
from batchkit.store import Store
from batchkit.store.rates import Reserved
from tests.store.conftest import Bench


def reserve(bench: Bench, run_id: RunId, *, items: int = 10, within: float = 2.0) -> Reserved:
    return bench.store.rates.reserve(run_id, items=items, rate=10.0, within=within)


def test_the_first_items_begin_at_once_and_the_next_behind_them(bench: Bench):
    run_id = bench.start()

    assert Reserved(0.0, was_reserved=True) == reserve(bench, run_id, items=1000)
    second = reserve(bench, run_id, within=100.0)

    assert second.was_reserved
    assert 0.0 < second.seconds <= 100.0


def test_what_is_too_long_to_wait_for_is_not_reserved(bench: Bench):
    run_id = bench.start()
    reserve(bench, run_id, items=1000)

    refused = [reserve(bench, run_id) for _ in range(3)]

    assert [False, False, False] == [each.was_reserved for each in refused]
    bench.pass_time(refused[0].seconds)
    assert reserve(bench, run_id).was_reserved


def test_a_rest_is_no_credit(bench: Bench):
    run_id = bench.start()
    reserve(bench, run_id)
    bench.pass_time(3600)

    assert Reserved(0.0, was_reserved=True) == reserve(bench, run_id, items=1000, within=0.0)
    assert not reserve(bench, run_id, within=0.0).was_reserved


@pytest.mark.parametrize("workers", [4])
def test_workers_that_reserve_at_once_get_times_of_their_own(database_url: str, workers: int):
    with closing(Bench(database_url)) as bench:
        run_id = bench.start()
        stores = [Store(database_url) for _ in range(workers)]
        waits: list[float] = []

        def many(store: Store) -> None:
            each = (store.rates.reserve(run_id, items=100, rate=10.0, within=3600.0) for _ in range(5))
            waits.extend(reserved.seconds for reserved in each)

        threads = [threading.Thread(target=many, args=[store]) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()

        assert 5 * workers == len(waits)
        # Each takes 10 s: the last of 20 begins 190 s behind the first, less the time that all of this took.
        ends = reserve(bench, run_id, within=3600.0).seconds
        assert [waits.index(0.0)] == [index for index, wait in enumerate(waits) if wait == 0.0]
        assert all(later - earlier > 5 for earlier, later in zip(sorted(waits), sorted(waits)[1:], strict=False))
        assert 100 < ends <= 200
