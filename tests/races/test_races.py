"""Two at once, in both orders: each on connections and threads of its own, on each database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from batchkit.errors import LeaseLost, RunActive
from batchkit.model import NewRun, Plan, Range, RunError, RunId
from batchkit.states import RunState
from batchkit.store import HeldConnection, database
from tests.servers.locks import anybody_waits
from tests.store.conftest import Bench, next_checkpoint
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for a lock: on a busy machine the other may hold it for seconds, and who wins is asked here."""
    monkeypatch.setattr(database, "_LOCK_WAIT_SECONDS", 60.0)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    """Give a store with its tables, on each database in turn."""
    with closing(Bench(database_url)) as made:
        yield made


@pytest.fixture
def server_bench(server_url: str) -> Iterator[Bench]:
    """Give a store with its tables on each database where two transactions really run at once."""
    with closing(Bench(server_url)) as made:
        yield made


def _both(first: Callable[[], object], second: Callable[[], object]) -> list[Future[object]]:
    """Run two things from one starting line."""
    line = threading.Barrier(2)

    def run(step: Callable[[], object]) -> object:
        line.wait(timeout=10)
        return step()

    with ThreadPoolExecutor(2) as pool:
        return [pool.submit(run, first), pool.submit(run, second)]


def _waits_for_a_lock(bench: Bench) -> bool:
    with bench.store.database.connect() as tx:
        return anybody_waits(tx)


@pytest.mark.parametrize("attempt", range(5))
def test_two_claims_of_one_partition_have_one_winner(bench: Bench, attempt: int):
    run_id = bench.start()

    def claim() -> object:
        return bench.store.leases.claim(run_id, 0, worker="w", seconds=10)

    leases = [each.result() for each in _both(claim, claim)]
    assert 1 == sum(lease is not None for lease in leases)


def test_stale_worker_against_new_owner_when_the_checkpoint_comes_first(server_bench: Bench):
    """The claim waits for the checkpoint's row lock, then sees a renewed lease and takes nothing."""
    bench = server_bench
    lease = bench.claim(bench.start(), seconds=10)
    held = HeldConnection(bench.store.database, lease.run_id)
    held.begin(idle=60)
    bench.pass_time(5)
    bench.store.leases.checkpoint(held, lease, next_checkpoint(lease))
    # Now the lease has ended by what was committed, and has not by what is about to be.
    bench.pass_time(6)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(bench.store.leases.claim, lease.run_id, 0, worker="late", seconds=10)
        eventually(lambda: _waits_for_a_lock(bench), message="the claim does not wait for the checkpoint")
        held.commit()
        assert late.result(timeout=10) is None
    held.close()
    assert 1 == bench.store.leases.position(lease).seq


def test_stale_worker_against_new_owner_when_the_claim_comes_first(server_bench: Bench):
    """The checkpoint waits for the claim's row lock, then finds another fence and moves nothing."""
    bench = server_bench
    stale = bench.claim(bench.start(), seconds=10)
    bench.pass_time(11)
    statements = bench.store.leases._statements  # noqa: SLF001  the claim is stopped between its statement and its commit
    held = HeldConnection(bench.store.database, stale.run_id)
    held.begin(idle=60)
    with bench.store.database.transaction() as tx, ThreadPoolExecutor(1) as pool:
        claimed = tx.execute(statements.claim(stale.run_id, 0, holder="new", worker="new", seconds=10))
        assert 1 == claimed.rowcount
        bench.pass_time(-5)
        late = pool.submit(bench.store.leases.checkpoint, held, stale, next_checkpoint(stale))
        eventually(lambda: _waits_for_a_lock(bench), message="the checkpoint does not wait for the claim")
        tx.commit()
        with pytest.raises(LeaseLost):
            late.result(timeout=10)
    held.close()
    assert 0 == bench.store.leases.position(stale).seq


@pytest.mark.parametrize("order", ["pause first", "finish first", "at once", "at once again", "and again"])
def test_pause_against_finish(bench: Bench, order: str):
    lease = bench.claim(bench.start())

    def pause() -> object:
        return bench.store.runs.pause(lease.run_id)

    def finish() -> object:
        return bench.store.leases.release(lease, is_exhausted=True, reason="done")

    if order == "pause first":
        pause()
        finish()
    elif order == "finish first":
        finish()
        with pytest.raises(Exception, match="succeeded"):
            pause()
    else:
        for each in _both(pause, finish):
            each.exception()
    # The end of the work beats the pause, whoever was first.
    record = bench.store.records.load(lease.run_id)
    assert (RunState.SUCCEEDED, None) == (record.state, record.requested)


@pytest.mark.parametrize("order", ["cancel first", "finish first", "at once", "at once again", "and again"])
def test_cancel_against_finish(bench: Bench, order: str):
    lease = bench.claim(bench.start())

    def cancel() -> object:
        return bench.store.runs.cancel(lease.run_id)

    def finish() -> object:
        return bench.store.leases.release(lease, is_exhausted=True, reason="done")

    if order == "cancel first":
        cancel()
        finish()
        wanted = {RunState.CANCELLED}
    elif order == "finish first":
        finish()
        wanted = {RunState.SUCCEEDED}
    else:
        for each in _both(cancel, finish):
            each.exception()
        wanted = {RunState.SUCCEEDED, RunState.CANCELLED}
    assert bench.store.records.load(lease.run_id).state in wanted


@pytest.mark.parametrize("attempt", range(10))
def test_two_last_partitions_end_their_run_once(bench: Bench, attempt: int):
    run_id = bench.start(ranges=2)
    leases = [bench.claim(run_id, number) for number in (0, 1)]

    def release(number: int) -> Callable[[], object]:
        return lambda: bench.store.leases.release(leases[number], is_exhausted=True, reason="done")

    states = [each.result() for each in _both(release(0), release(1))]
    assert {RunState.RUNNING, RunState.SUCCEEDED} == set(states)
    endings = [each for each in bench.store.records.history(run_id) if each.after is RunState.SUCCEEDED]
    assert 1 == len(endings)


@pytest.mark.parametrize("attempt", range(5))
def test_two_finishers_finish_once(bench: Bench, attempt: int):
    """Both hold what they believe to be the lease on `finish`; only the owner's transaction commits."""
    run_id = bench.start(has_finish=True)
    bench.store.leases.release(bench.claim(run_id), is_exhausted=True, reason="done")
    stale = bench.claim(run_id, 1)
    bench.pass_time(11)
    owner = bench.claim(run_id, 1)
    with bench.store.database.transaction() as tx:
        tx.execute(text("DROP TABLE IF EXISTS report"))
        tx.execute(text("CREATE TABLE report (run VARCHAR(26))"))

    def finish(lease: object) -> Callable[[], object]:
        def step() -> object:
            with bench.store.database.transaction() as tx:
                tx.execute(text("INSERT INTO report VALUES (:run)"), {"run": run_id})
                standing = bench.store.leases.finish(tx, lease, result="1", worker="w")  # type: ignore[arg-type]
                if standing is not None:
                    # As the slice does: a run that is not running any more is left, and what was written undone.
                    raise LeaseLost(run_id, partition=1, fence=0)
                return standing

        return step

    outcomes = _both(finish(stale), finish(owner))
    assert isinstance(outcomes[0].exception(), LeaseLost)
    assert outcomes[1].result() is None
    with bench.store.database.connect() as tx:
        assert 1 == tx.execute(text("SELECT count(*) FROM report")).scalar()
    assert RunState.SUCCEEDED == bench.store.records.load(run_id).state


@pytest.mark.parametrize("attempt", range(5))
def test_two_planners_plan_once(bench: Bench, attempt: int):
    new = NewRun(job="job", params="{}", queue="default", delivery="exactly-once")
    bench.store.starts.create(new)
    stale = bench.claim(new.id)
    bench.pass_time(11)
    owner = bench.claim(new.id)
    outcomes = _both(
        lambda: bench.store.leases.plan(stale, Plan(ranges=(Range(),), total=1)),
        lambda: bench.store.leases.plan(owner, Plan(ranges=(Range(until="5"), Range(after="5")), total=2)),
    )
    assert isinstance(outcomes[0].exception(), LeaseLost)
    assert outcomes[1].exception() is None
    assert (2, 2) == (bench.store.records.load(new.id).progress.total, len(bench.store.records.partitions(new.id)))


_STARTS = 50


def _start_at_once(bench: Bench, start: Callable[[], RunId]) -> list[Future[RunId]]:
    """Start from one line, on threads that all have connections of their own or wait for one."""
    line = threading.Barrier(_STARTS)

    def run() -> RunId:
        line.wait(timeout=30)
        return start()

    with ThreadPoolExecutor(_STARTS) as pool:
        return [pool.submit(run) for _ in range(_STARTS)]


def _new(**keys: str) -> NewRun:
    return NewRun(job="job", params="{}", queue="default", delivery="exactly-once", **keys)  # type: ignore[arg-type]


def test_fifty_starts_with_one_key_are_one_run(bench: Bench):
    starts = _start_at_once(bench, lambda: bench.store.starts.join(_new(start_key="key:one", unique_key="u")))
    runs = {each.result() for each in starts}
    assert runs == {record.id for record in bench.store.records.newest(limit=100)}
    assert 1 == len(runs)
    assert 1 == len(bench.store.records.partitions(runs.pop()))


def test_fifty_starts_with_one_unique_key_are_one_run_and_errors_that_name_it(bench: Bench):
    starts = _start_at_once(bench, lambda: bench.store.starts.join(_new(unique_key="u")))
    errors = [error for each in starts if (error := each.exception()) is not None]
    (run,) = bench.store.records.newest(limit=100)
    assert _STARTS - 1 == len(errors)
    assert all(isinstance(error, RunActive) and run.id == error.run_id for error in errors)


def test_fifty_sessions_that_start_with_one_key_are_one_run(bench: Bench):
    """Those that are refused keep what they wrote besides."""
    engine = create_engine(bench.store.database.engine.url, pool_size=_STARTS, connect_args=_waiting(bench))
    with engine.begin() as tx:
        tx.execute(text("CREATE TABLE mine (id INTEGER)"))

    def start() -> RunId:
        with Session(engine) as session, session.begin():
            session.execute(text("INSERT INTO mine VALUES (1)"))
            return bench.store.starts.join_in(bench.store.connection_of(session), _new(start_key="key:one"))

    runs = {each.result() for each in _start_at_once(bench, start)}
    assert runs == {record.id for record in bench.store.records.newest(limit=100)}
    with engine.connect() as tx:
        assert _STARTS == tx.execute(text("SELECT count(*) FROM mine")).scalar()
    engine.dispose()
    assert 1 == len(runs)


def _waiting(bench: Bench) -> dict[str, object]:
    return {"timeout": 60} if bench.store.database.dialect.has_one_writer else {}


@pytest.mark.parametrize("attempt", range(5))
def test_a_resume_against_a_start_of_the_same_unique_key(bench: Bench, attempt: int):
    runs = bench.store.runs
    starts = bench.store.starts
    failed = starts.join(_new(unique_key="u"))
    error = RunError(type="ValueError", message="bad", traceback="", partition=0, cursor=None)
    bench.store.leases.fail(bench.claim(failed), error, worker="worker")

    outcomes = _both(lambda: runs.resume(failed), lambda: starts.join(_new(unique_key="u")))
    errors = [each.exception() for each in outcomes]
    assert [RunActive] == [type(error) for error in errors if error is not None]
    active = [record for record in bench.store.records.newest(limit=10) if record.state is RunState.QUEUED]
    assert 1 == len(active)


@pytest.mark.parametrize("attempt", range(3))
def test_many_sweeps_at_once_settle_a_run_once(bench: Bench, attempt: int):
    lease = bench.claim(bench.start())
    bench.pass_time(11)
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(bench.store.runs.settle_unattended, [lease.run_id] * 4))
    assert [RunState.QUEUED] * 4 == states
    assert 1 == bench.store.records.load(lease.run_id).progress.interruptions


@pytest.mark.parametrize("attempt", range(3))
def test_claims_at_the_same_time_do_not_go_beyond_the_most_workers(bench: Bench, attempt: int):
    run_id = bench.start(ranges=6, max_workers=2)
    line = threading.Barrier(6)

    def claim(number: int) -> object:
        line.wait(timeout=10)
        return bench.store.leases.claim(run_id, number, worker="w", seconds=10)

    with ThreadPoolExecutor(6) as pool:
        leases = list(pool.map(claim, range(6)))
    assert 2 == sum(lease is not None for lease in leases)


def test_the_last_failure_that_is_allowed_is_recorded_by_one_of_two_partitions(server_bench: Bench):
    bench = server_bench
    run_id = bench.start(ranges=2)
    first, second = (bench.claim(run_id, number) for number in (0, 1))
    failures = bench.store.failures
    held = [HeldConnection(bench.store.database, run_id) for _ in range(2)]
    try:
        for each in held:
            each.begin(idle=60)
        assert (0, 0) == failures.tally(held[0].connection, run_id, is_shared=True)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(failures.tally, held[1].connection, run_id, is_shared=True)
            eventually(lambda: _waits_for_a_lock(bench), within=10, message=lambda: "the second does not wait")
            failed = replace(next_checkpoint(first), done=0, failed=1)
            bench.store.leases.checkpoint(held[0], first, failed)
            held[0].commit()
            # It counts what the first has committed meanwhile.
            assert (0, 1) == later.result(timeout=10)
        bench.store.leases.checkpoint(held[1], second, next_checkpoint(second))
        held[1].commit()
    finally:
        for each in held:
            each.close()


@pytest.mark.parametrize("attempt", range(3))
def test_wake_ups_that_are_shared_at_the_same_time_are_sent_once(bench: Bench, attempt: int):
    run_id = bench.start(ranges=40)

    def share() -> object:
        return bench.store.wake_ups.take_shares(run_id, window=4)

    taken = [each.result() for each in _both(share, share)]
    sent = [wake_up.partition for wake_ups in taken if isinstance(wake_ups, list) for wake_up in wake_ups]
    assert sorted(set(sent)) == sorted(sent)
    assert 4 <= len(sent) <= 8


def test_pause_against_the_claim_of_another_partition_when_the_pause_comes_first(bench: Bench):
    run_id = bench.start(ranges=2)
    held = bench.claim(run_id, 0)

    bench.store.runs.pause(run_id)
    assert bench.store.leases.claim(run_id, 1, worker="w", seconds=10) is None
    assert RunState.PAUSED is bench.store.leases.release(held, reason="asked to", is_interrupt=False)


def test_pause_against_the_claim_of_another_partition_when_the_claim_comes_first(bench: Bench):
    run_id = bench.start(ranges=2)
    first, second = bench.claim(run_id, 0), bench.claim(run_id, 1)

    bench.store.runs.pause(run_id)
    assert RunState.RUNNING is bench.store.leases.release(first, reason="asked to", is_interrupt=False)
    assert RunState.PAUSED is bench.store.leases.release(second, reason="asked to", is_interrupt=False)


def test_a_taken_over_partition_does_not_disturb_the_others(bench: Bench):
    run_id = bench.start(ranges=2)
    dead, alive = bench.claim(run_id, 0, seconds=10), bench.claim(run_id, 1, seconds=100)
    bench.pass_time(20)

    taken = bench.claim(run_id, 0)
    moved, standing = bench.checkpoint(alive)
    assert (True, dead.fence + 1, alive.fence) == (standing.goes_on, taken.fence, moved.fence)
    with pytest.raises(LeaseLost):
        bench.checkpoint(dead)
    assert 1 == bench.store.records.load(run_id).progress.interruptions
