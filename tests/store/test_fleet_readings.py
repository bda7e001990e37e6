"""What a reading of the fleet counts while workers claim and hand on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from batchkit.model import RunId
from tests.store.conftest import Bench

_READINGS = 200


@contextmanager
def _handed_on(bench: Bench, run_id: RunId) -> Iterator[None]:
    """Have a partition claimed and handed on, over and over, for the length of the block."""
    is_over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not is_over.is_set():
                lease = bench.claim(run_id)
                bench.store.leases.release(lease, reason="handed on", is_interrupt=False)
        except BaseException as error:  # noqa: BLE001  it is raised by whoever waits for the thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert [] == errors


def test_a_partition_is_waiting_or_worked_at_every_moment_while_it_is_handed_on(server_bench: Bench):
    run_id = server_bench.start()
    with _handed_on(server_bench, run_id):
        wanted = [server_bench.store.fleet.busy().queue("default").wanted for _ in range(_READINGS)]
    assert {1} == set(wanted)
