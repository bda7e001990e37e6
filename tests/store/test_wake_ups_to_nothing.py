"""A wake-up that comes to nothing takes no place among those that are under way, however old its run is."""

from __future__ import annotations

import time

import pytest

from batchkit.model import Lease, RunId, WakeUp
from batchkit.store.statements import PATIENCE_SECONDS
from batchkit.sweep import sweep
from batchkit.waking import WINDOW, share, wake_run
from tests.store.conftest import Bench

_HOUR = 3600.0
_SWEEP_SECONDS = 5.0


class Broker:
    """A queue that takes messages or is away; workers see what the test hands them."""

    crosses_processes = True
    keeps_messages = True

    def __init__(self) -> None:
        self.is_away = False
        self.sent: list[WakeUp] = []

    def wake(self, wake_up: WakeUp) -> None:
        """Keep the message, or fail."""
        if self.is_away:
            raise ConnectionError("the broker is away")
        self.sent.append(wake_up)

    def take(self) -> list[WakeUp]:
        """Take all messages out."""
        taken, self.sent = self.sent, []
        return taken


@pytest.fixture
def broker() -> Broker:
    """Give a broker with no messages."""
    return Broker()


def old_run(bench: Bench, *, max_workers: int | None = None) -> RunId:
    """Start a run whose partitions have waited for an hour."""
    run_id = bench.start(ranges=10, max_workers=max_workers)
    bench.pass_time(_HOUR)
    return run_id


def come(bench: Bench, wake_up: WakeUp) -> Lease | None:
    """Claim as the worker does that a message has reached."""
    return bench.store.leases.claim(
        wake_up.run_id, wake_up.partition, worker="another", seconds=60, wake_no=wake_up.number
    )


def seconds_until_sent(bench: Bench, broker: Broker) -> tuple[float, float]:
    """Let sweeps go on until one sends a message; give the time that was made to pass, and what passed by itself."""
    seconds, began = 0.0, time.monotonic()
    while not broker.sent:
        seconds += _SWEEP_SECONDS
        bench.pass_time(_SWEEP_SECONDS)
        sweep(bench.store, broker)
    return seconds, time.monotonic() - began


def test_wake_ups_that_come_while_their_run_is_held_are_sent_again_after_the_hold(bench: Bench, broker: Broker):
    run_id = old_run(bench)
    held = bench.claim(run_id, 9)
    share(bench.store, broker, run_id)
    bench.store.leases.release(held, reason="held", delay=20.0, is_interrupt=False, is_waiting=True)
    early = broker.take()
    assert [None] * WINDOW == [come(bench, wake_up) for wake_up in early]
    sweep(bench.store, broker)
    assert [] == broker.sent
    bench.pass_time(20.0)
    sweep(bench.store, broker)
    assert [wake_up.partition for wake_up in early] == [wake_up.partition for wake_up in broker.sent]


def test_a_wake_up_that_comes_where_there_is_no_room_is_sent_again_when_there_is(bench: Bench, broker: Broker):
    run_id = old_run(bench, max_workers=1)
    # In the gap between two partitions of one worker.
    share(bench.store, broker, run_id)
    (early,) = broker.take()
    at_work = bench.claim(run_id, 9)
    assert come(bench, early) is None
    sweep(bench.store, broker)
    assert [] == broker.sent
    bench.store.leases.release(at_work, reason="its time is over")
    assert wake_run(bench.store, broker, run_id)
    assert [early.partition] == [wake_up.partition for wake_up in broker.sent]
    assert come(bench, broker.sent[0]) is not None


def test_a_wake_up_that_comes_before_a_pause_is_taken_back_is_sent_again(bench: Bench, broker: Broker):
    run_id = old_run(bench)
    bench.claim(run_id, 9, seconds=60)
    share(bench.store, broker, run_id)
    early = broker.take()
    bench.store.runs.pause(run_id)
    assert [None] * WINDOW == [come(bench, wake_up) for wake_up in early]
    bench.store.runs.resume(run_id)
    assert WINDOW == len(share(bench.store, broker, run_id))


def test_wake_ups_of_an_old_run_that_the_broker_loses_are_sent_again_after_the_shortest_patience(
    bench: Bench, broker: Broker
):
    run_id = old_run(bench)
    at_work = bench.claim(run_id, 9)
    share(bench.store, broker, run_id)
    assert WINDOW == len(broker.take())
    bench.store.leases.release(at_work, reason="its time is over")
    assert not wake_run(bench.store, broker, run_id)
    passed, _ = seconds_until_sent(bench, broker)
    assert passed <= PATIENCE_SECONDS + _SWEEP_SECONDS


def test_wake_ups_that_nobody_takes_are_sent_half_as_often_each_time(bench: Bench, broker: Broker):
    old_run(bench)
    sweep(bench.store, broker)
    waits = []
    for _ in range(4):
        assert WINDOW == len(broker.take())
        waits.append(seconds_until_sent(bench, broker))
    for number, (passed, by_itself) in enumerate(waits):
        # A second more: for the sweep that has sent it before.
        assert -by_itself - 1 <= passed - PATIENCE_SECONDS * 2**number <= _SWEEP_SECONDS
    # A worker that comes for a partition ends that for this one.
    lease = come(bench, broker.take()[0])
    assert lease is not None
    bench.store.leases.release(lease, reason="its time is over")
    (again,) = bench.store.wake_ups.waiting(lease.run_id, partition=lease.number)
    assert again.patience is None


def test_wake_ups_that_a_broker_does_not_take_are_sent_by_the_next_sweep(bench: Bench, broker: Broker):
    shared = old_run(bench)
    alone = bench.start()
    bench.pass_time(_HOUR)
    broker.is_away = True
    sweep(bench.store, broker)
    assert [] == share(bench.store, broker, shared)
    broker.is_away = False
    sweep(bench.store, broker)
    assert {shared: WINDOW, alone: 1} == {
        run_id: sum(wake_up.run_id == run_id for wake_up in broker.sent) for run_id in (shared, alone)
    }


def test_a_wake_up_that_a_worker_has_claimed_with_gives_no_place_back(bench: Bench, broker: Broker):
    run_id = old_run(bench)
    used = share(bench.store, broker, run_id)[0]
    lease = come(bench, used)
    assert lease is not None
    bench.store.leases.release(lease, reason="its time is over")
    newer = [wake_up for _ in range(3) for wake_up in bench.store.wake_ups.take_shares(run_id, window=10)]
    assert lease.number in [wake_up.partition for wake_up in newer]
    bench.store.wake_ups.give_resend_back(used)
    bench.store.wake_ups.send_soon(used)
    assert [] == bench.store.wake_ups.take_shares(run_id, window=10)


def test_a_claim_that_is_refused_takes_no_turn(bench: Bench, broker: Broker):
    first, second = old_run(bench, max_workers=1), bench.start(ranges=2)
    at_work = bench.claim(first, 9, seconds=100)
    (wake_up,) = bench.store.wake_ups.waiting(first, partition=1)
    bench.pass_time(10)
    bench.store.leases.release(bench.claim(second, 1), reason="its time is over")
    bench.pass_time(10)
    # First there is no room, then it is a copy whose number is not the newest.
    assert come(bench, wake_up) is None
    bench.store.leases.release(at_work, reason="its time is over")
    assert bench.store.leases.claim(first, 1, worker="w", seconds=60, wake_no=wake_up.number + 7) is None
    assert [first, second] == [run_id for run_id, _ in bench.store.leases.claimable(jobs=["job"], queues=None)]
