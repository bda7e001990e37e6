"""Wake-ups are numbered, so that copies of a message do nothing, and sent again when they are overdue."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import select

from batchkit import telling
from batchkit.delivery import start_key
from batchkit.model import NewRun, Plan, Range, RunError, RunId, WakeUp
from batchkit.states import RunState
from batchkit.store import Clock
from batchkit.store.statements import PATIENCE_SECONDS, Statements
from batchkit.sweep import sweep
from batchkit.waking import WINDOW
from tests.store.conftest import Bench
from tests.waiting import eventually


class Recorder:
    """A queue whose messages nobody receives."""

    crosses_processes = True
    keeps_messages = True

    def __init__(self) -> None:
        self.sent: list[WakeUp] = []

    def wake(self, wake_up: WakeUp) -> None:
        """Keep the message."""
        self.sent.append(wake_up)


def _start(bench: Bench, *, key: str | None = None) -> RunId:
    message = None if key is None else "m"
    new = NewRun(job="job", params="{}", queue="default", delivery="exactly-once", start_key=key, message=message)
    return bench.store.starts.join(new)


def _waiting(bench: Bench, run_id: RunId) -> WakeUp:
    (wake_up,) = bench.store.wake_ups.waiting(run_id)
    return wake_up


def _claims(bench: Bench, wake_up: WakeUp) -> bool:
    lease = bench.store.leases.claim(wake_up.run_id, wake_up.partition, worker="w", seconds=10, wake_no=wake_up.number)
    return lease is not None


def test_a_claim_uses_its_wake_up(bench: Bench):
    run_id = _start(bench)
    first = _waiting(bench, run_id)
    lease = bench.store.leases.claim(run_id, 0, worker="w", seconds=10, wake_no=first.number)
    assert lease is not None
    bench.store.leases.release(lease, reason="interrupted")

    second = _waiting(bench, run_id)
    assert first.number < second.number
    assert not _claims(bench, first)
    assert _claims(bench, second)
    assert not _claims(bench, second)


def test_a_wake_up_of_before_a_takeover_is_stale(bench: Bench):
    run_id = _start(bench)
    first = _waiting(bench, run_id)
    bench.claim(run_id)
    bench.pass_time(11)
    assert [run_id] == list(sweep(bench.store, Recorder()).settled)
    assert not _claims(bench, first)
    assert _claims(bench, _waiting(bench, run_id))


def test_messages_whose_ids_differ_in_case_accent_or_spaces_start_runs_of_their_own(bench: Bench):
    ids = ["nightly", "Nightly", "nightlý", "nightly ", "nightly  ", " nightly"]
    runs = [_start(bench, key=start_key("celery", each)) for each in ids]
    assert len(ids) == len(set(runs))
    assert runs == [_start(bench, key=start_key("celery", each)) for each in ids]


def test_a_run_that_somebody_locks_keeps_no_sweep_from_the_others(server_bench: Bench):
    bench = server_bench
    locked, free, waiting = (_start(bench) for _ in range(3))
    bench.claim(locked)
    bench.claim(free)
    bench.pass_time(PATIENCE_SECONDS + 1)
    queue = Recorder()
    statements = Statements(bench.store.database.tables, Clock())

    with bench.store.database.transaction() as tx:
        tx.execute(statements.lock_run(locked))
        swept = sweep(bench.store, queue)

    assert (free,) == swept.settled
    assert {free, waiting} <= set(swept.woken)
    assert (locked,) == sweep(bench.store, queue).settled


def test_of_many_claims_with_one_wake_up_one_wins(bench: Bench):
    wake_up = _waiting(bench, _start(bench))
    begin = threading.Barrier(4)

    def claim(_: int) -> bool:
        begin.wait()
        return _claims(bench, wake_up)

    with ThreadPoolExecutor(4) as pool:
        assert 1 == sum(pool.map(claim, range(4)))


def test_a_message_is_given_time_before_it_is_sent_again(bench: Bench):
    run_id, queue = _start(bench), Recorder()
    sweep(bench.store, queue)
    assert [] == queue.sent
    bench.pass_time(16)
    sweep(bench.store, queue)
    sweep(bench.store, queue)
    assert [run_id] == [wake_up.run_id for wake_up in queue.sent]


def test_what_a_dead_worker_held_is_sent_by_the_sweep_that_finds_it(bench: Bench):
    run_id, queue = _start(bench), Recorder()
    bench.claim(run_id)
    bench.pass_time(11)
    swept = sweep(bench.store, queue)
    assert (run_id,) == swept.settled == swept.woken


def test_what_was_given_back_with_a_delay_is_sent_when_it_is_due(bench: Bench):
    run_id, queue = _start(bench), Recorder()
    bench.store.leases.release(bench.claim(run_id), reason="declined", delay=300)
    # The clock runs on by itself as well, on a busy machine for seconds.
    bench.pass_time(240)
    sweep(bench.store, queue)
    assert [] == queue.sent
    bench.pass_time(61)
    sweep(bench.store, queue)
    assert 1 == len(queue.sent)


def test_sweeps_at_the_same_time_send_one_message(bench: Bench):
    for _ in range(5):
        _start(bench)
    bench.pass_time(16)
    queue, begin = Recorder(), threading.Barrier(4)

    def one_sweep(_: int) -> None:
        begin.wait()
        sweep(bench.store, queue)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_sweep, range(4)))
    assert 5 == len(queue.sent)


def test_a_backlog_of_an_hour_gets_few_copies(sqlite_bench: Bench):
    runs = {_start(sqlite_bench) for _ in range(1000)}
    queue = Recorder()
    for _ in range(3600 // 5):
        sqlite_bench.pass_time(5)
        if sqlite_bench.store.wake_ups.overdue(limit=1):
            sweep(sqlite_bench.store, queue)

    assert runs == {wake_up.run_id for wake_up in queue.sent}
    # After 15, 30, 60, ... 960 s, then every 900 s.
    assert len(queue.sent) <= 10 * len(runs)
    # The same number, so that the first copy that a worker claims with makes all others stale.
    assert {0} == {wake_up.number for wake_up in queue.sent}


def test_a_paused_run_is_not_woken_and_a_resumed_one_is(bench: Bench):
    run_id, queue = _start(bench), Recorder()
    bench.store.runs.pause(run_id)
    bench.pass_time(1000)
    sweep(bench.store, queue)
    assert [] == queue.sent
    bench.store.runs.resume(run_id)
    assert run_id == _waiting(bench, run_id).run_id


def test_a_copy_of_the_message_that_started_a_run_joins_it(bench: Bench):
    assert _start(bench, key="celery:1") == _start(bench, key="celery:1") != _start(bench, key="celery:2")


def test_of_many_copies_at_once_one_starts_the_run(bench: Bench):
    begin = threading.Barrier(4)

    def start(_: int) -> RunId:
        begin.wait()
        return _start(bench, key="celery:1")

    with ThreadPoolExecutor(4) as pool:
        assert 1 == len(set(pool.map(start, range(4))))


def _fail(bench: Bench, run_id: RunId) -> None:
    error = RunError(type="ValueError", message="no", traceback="", partition=0, cursor=None)
    bench.store.leases.fail(bench.claim(run_id), error, worker="w")


def test_the_end_of_a_run_is_told_by_one_message_until_it_was(bench: Bench):
    run_id, queue = _start(bench, key="celery:1"), Recorder()
    assert not bench.store.announcements.begin_announcing(run_id)
    _fail(bench, run_id)

    assert bench.store.announcements.begin_announcing(run_id)
    assert not bench.store.announcements.begin_announcing(run_id)
    bench.pass_time(61)  # the worker that had begun is dead
    sweep(bench.store, queue)
    sweep(bench.store, queue)
    assert ["m"] == [wake_up.message for wake_up in queue.sent]

    assert bench.store.announcements.begin_announcing(run_id)
    bench.store.announcements.announced(run_id)
    bench.pass_time(10_000)
    assert not bench.store.announcements.begin_announcing(run_id)
    sweep(bench.store, queue)
    assert 1 == len(queue.sent)


def test_a_run_that_no_message_started_has_nothing_to_tell(bench: Bench):
    run_id = _start(bench)
    _fail(bench, run_id)
    bench.pass_time(1000)
    assert not bench.store.announcements.begin_announcing(run_id)
    assert [] == bench.store.announcements.unannounced(limit=10)


@pytest.mark.parametrize("ending", ["cancel", "fail"])
def test_a_cancelled_or_resumed_run_tells_of_its_real_end(bench: Bench, ending: str):
    run_id = _start(bench, key="celery:1")
    if ending == "cancel":
        bench.store.runs.cancel(run_id)
    else:
        _fail(bench, run_id)
        assert bench.store.announcements.begin_announcing(run_id)
        bench.store.announcements.announced(run_id)
        bench.store.runs.resume(run_id)
        assert not bench.store.announcements.begin_announcing(run_id)
        assert RunState.SUCCEEDED == bench.store.leases.release(
            bench.claim(run_id), is_exhausted=True, reason="every item is done"
        )
    assert bench.store.announcements.begin_announcing(run_id)


def test_the_right_to_tell_of_an_end_is_kept_while_it_is_told(bench: Bench):
    run_id = _start(bench, key="k")
    _fail(bench, run_id)
    announcements = bench.store.announcements
    assert announcements.begin_announcing(run_id)
    for _ in range(3):
        bench.pass_time(15)
        announcements.keep_announcing(run_id)
        assert not announcements.begin_announcing(run_id)
        assert not announcements.unannounced(limit=10)
    announcements.announced(run_id)
    # Late, from a thread that has not heard of that.
    announcements.keep_announcing(run_id)
    bench.pass_time(60)
    assert not announcements.begin_announcing(run_id)
    assert not announcements.unannounced(limit=10)


def test_a_thread_keeps_the_right_to_tell_of_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telling, "_EVERY_SECONDS", 0.01)
    run_id = _start(bench, key="k")
    _fail(bench, run_id)
    assert bench.store.announcements.begin_announcing(run_id)
    told = telling.Telling(bench.store, run_id)
    told.keep()
    for _ in range(3):
        _pass_time_announcing(bench)
        assert not bench.store.announcements.begin_announcing(run_id)
    told.done()
    bench.pass_time(100)
    assert [] == bench.store.announcements.unannounced(limit=10)


def _pass_time_announcing(bench: Bench) -> None:
    before = _announcing_until(bench)
    bench.pass_time(15)
    eventually(lambda: _announcing_until(bench) > before)


def _announcing_until(bench: Bench) -> datetime:
    with bench.store.database.reading() as tx:
        found: datetime = tx.execute(select(bench.store.database.tables.run.c.announcing_until)).scalar_one()
    return found


# Several partitions


def test_a_sweep_sends_a_few_wake_ups_of_a_run_with_many_partitions(bench: Bench):
    large, small = bench.start(ranges=50), _start(bench)
    queue = Recorder()
    bench.pass_time(20)
    sweep(bench.store, queue)
    sent = [(wake_up.run_id, wake_up.partition) for wake_up in queue.sent]
    # The first partition waits behind the others: somebody has given it back when the run was planned.
    assert [(small, 0), *((large, number) for number in range(1, WINDOW + 1))] == sent
    # Those that nobody takes are sent again now and then, and no others.
    for _ in range(100):
        bench.pass_time(5)
        sweep(bench.store, queue)
    again = [wake_up.partition for wake_up in queue.sent if wake_up.run_id == large]
    assert set(range(1, WINDOW + 1)) == set(again)
    assert len(again) <= 7 * WINDOW


def test_what_a_dead_worker_held_is_among_what_a_sweep_sends(bench: Bench):
    run_id, queue = bench.start(ranges=3), Recorder()
    dead = bench.claim(run_id, 1, seconds=10)
    for number in (0, 2):
        bench.claim(run_id, number, seconds=1000)
    bench.pass_time(20)
    sweep(bench.store, queue)
    assert [dead.number] == [wake_up.partition for wake_up in queue.sent]


def test_the_message_that_started_a_run_goes_with_its_first_partition_only(bench: Bench):
    new = NewRun(
        job="job", params="{}", queue="default", delivery="exactly-once", start_key="k", message="m", partitions=3
    )
    bench.store.starts.create(new)
    lease = bench.claim(new.id)
    planned = bench.store.leases.plan(lease, Plan(ranges=(Range(), Range(), Range()), total=3))
    bench.store.leases.release(planned, reason="planned")

    sent = bench.store.wake_ups.take_shares(new.id, window=9)
    assert [(0, True), (1, False), (2, False)] == sorted((each.partition, bool(each.is_by_message)) for each in sent)
    assert {"m"} == {each.message for each in sent}
    assert [] == bench.store.announcements.announcement(new.id)
    bench.store.runs.cancel(new.id)
    (announcement,) = bench.store.announcements.announcement(new.id)
    assert (0, "m", True) == (announcement.partition, announcement.message, bool(announcement.is_by_message))
