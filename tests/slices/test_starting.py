"""Starting runs: in a session of the user's, by a key, and one at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import (
    InvalidDatabase,
    InvalidJob,
    InvalidParams,
    InvalidStart,
    KeyTaken,
    RunActive,
    RunNotCommitted,
    RunNotFound,
)
from batchkit.job import JOBS
from batchkit.model import WakeUp
from batchkit.queues import InlineQueue
from batchkit.run import Run
from batchkit.sources import Source
from batchkit.starting import is_same_start, new_run
from tests.slices.conftest import Ledger, job, ledger, write

_ROOT = Path(__file__).resolve().parents[2]


class Recorded:
    """A queue that only remembers what it was asked to wake."""

    crosses_processes = False
    keeps_messages = True

    def __init__(self) -> None:
        self.woken: list[str] = []

    def wake(self, wake_up: WakeUp) -> None:
        self.woken.append(wake_up.run_id)


@pytest.fixture
def queue() -> Recorded:
    return Recorded()


@pytest.fixture
def kit(database_url: str, queue: Recorded) -> Iterator[BatchKit]:
    """Give a kit whose runs nobody works."""
    made = BatchKit(database_url, queue=queue)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def session(kit: BatchKit, done: Ledger) -> Iterator[Session]:
    """Give a session on an engine of the user's."""
    with Session(done.engine) as made:
        yield made


def numbers(n: int = 10, label: str = "x") -> Source[int]:
    return span(n)


def work(chunk: Chunk[int], n: int = 10, label: str = "x") -> None:
    write(chunk)


def end(kit: BatchKit, run: Run) -> None:
    run.cancel()
    assert run.has_ended


# session


def test_a_run_started_in_a_session_is_there_and_woken_up_after_its_commit(
    kit: BatchKit, queue: Recorded, session: Session
):
    session.execute(insert(ledger), {"item": 1})
    run = job(numbers, work).using(session=session).start(n=5)

    assert (RunState.QUEUED, {"n": 5, "label": "x"}) == (run.state, run.params)
    assert ([], []) == (kit.runs(), queue.woken)
    session.commit()
    assert [run.id] == queue.woken == [each.id for each in kit.runs()]
    assert RunState.QUEUED == run.refresh().state
    assert ["started"] == [each.reason for each in run.history()]
    session.commit()
    assert 1 == len(queue.woken)


def test_a_rollback_leaves_no_run_and_wakes_nobody(kit: BatchKit, queue: Recorded, session: Session):
    run = job(numbers, work).using(session=session).start()
    session.rollback()
    session.execute(insert(ledger), {"item": 1})
    session.commit()
    assert ([], []) == (kit.runs(), queue.woken)
    with pytest.raises(RunNotCommitted):
        run.refresh()


def test_a_session_that_is_closed_leaves_no_run(kit: BatchKit, queue: Recorded, session: Session):
    job(numbers, work).using(session=session).start()
    session.close()
    session.execute(insert(ledger), {"item": 1})
    session.commit()
    assert ([], []) == (kit.runs(), queue.woken)


def test_a_savepoint_that_is_rolled_back_leaves_no_run_and_the_others(kit: BatchKit, queue: Recorded, session: Session):
    made = job(numbers, work)
    # The standard library's driver begins no transaction for a savepoint.
    session.execute(insert(ledger), {"item": 1})
    first = made.using(session=session).start()
    savepoint = session.begin_nested()
    made.using(session=session).start()
    savepoint.rollback()
    with session.begin_nested():
        last = made.using(session=session).start()
    assert [] == queue.woken
    session.commit()
    assert [first.id, last.id] == sorted(queue.woken)
    assert 2 == len(kit.runs())


def test_an_error_in_the_users_block_leaves_no_run(kit: BatchKit, queue: Recorded, done: Ledger):
    def fail_after_starting() -> None:
        with Session(done.engine) as session, session.begin():
            job(numbers, work).using(session=session).start()
            raise LookupError

    with pytest.raises(LookupError):
        fail_after_starting()
    assert ([], []) == (kit.runs(), queue.woken)


def test_a_scoped_session_stands_for_its_session(kit: BatchKit, queue: Recorded, done: Ledger):
    scoped = scoped_session(sessionmaker(done.engine))
    run = job(numbers, work).using(session=scoped).start()
    scoped.commit()
    assert [run.id] == queue.woken
    scoped.remove()


def test_before_the_commit_the_run_says_why_it_can_do_nothing(kit: BatchKit, session: Session):
    run = job(numbers, work).using(session=session).start()
    for step in (run.refresh, run.pause, run.cancel, run.resume, run.rerun, run.partitions, run.history, run.wait):
        with pytest.raises(RunNotCommitted, match=f"run {run.id} of {run.job} was started in a session"):
            step()
    with pytest.raises(RunNotFound):
        kit.run(run.id)
    session.commit()
    assert RunState.CANCELLED == run.cancel().state


def test_a_session_on_another_database_is_refused(kit: BatchKit, queue: Recorded, tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with Session(engine) as other, pytest.raises(InvalidStart, match=r"other\.db, but the kit keeps its runs in"):
        job(numbers, work).using(session=other).start()
    with Session() as unbound, pytest.raises(InvalidStart, match="bound to no database"):
        job(numbers, work).using(session=unbound).start()
    assert [] == kit.runs()
    engine.dispose()


def test_a_session_without_transactions_is_refused(server_url: str):
    engine = create_engine(server_url)
    kit = BatchKit(engine, queue=Recorded())
    kit.migrate()
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(alone) as session, pytest.raises(InvalidDatabase, match="AUTOCOMMIT"):
        job(numbers, work).using(session=session).start()
    assert [] == kit.runs()
    kit.close()


def test_a_pool_that_has_nothing_left_does_not_keep_a_commit_waiting(database_url: str):
    """Were the wake-up sent while the session has its connection, it would wait for another in vain."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=5)
    queue = Recorded()
    kit = BatchKit(engine, queue=queue)
    kit.migrate()
    with Session(engine) as session:
        run = job(numbers, work).using(session=session).start()
        session.commit()
    assert [run.id] == queue.woken
    kit.close()


def test_a_queue_that_works_at_once_works_after_the_commit(database_url: str, done: Ledger):
    kit = BatchKit(database_url, queue=InlineQueue())
    kit.migrate()
    with Session(done.engine) as session:
        run = job(numbers, work).using(session=session).start()
        assert [] == done.items()
        session.commit()
    assert (RunState.SUCCEEDED, 10) == (run.refresh().state, done.count())
    kit.close()


def test_a_queue_that_fails_does_not_fail_the_commit(kit: BatchKit, queue: Recorded, session: Session):
    def fail(wake_up: WakeUp) -> None:
        raise ConnectionError("broker is away")

    queue.wake = fail  # type: ignore[method-assign]
    run = job(numbers, work).using(session=session).start()
    session.commit()
    assert [run.id] == [each.id for each in kit.runs()]


def test_a_database_that_fails_after_the_commit_does_not_fail_it(
    kit: BatchKit, queue: Recorded, session: Session, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> list[WakeUp]:
        raise ConnectionError("away")

    run = job(numbers, work).using(session=session).start()
    monkeypatch.setattr(kit._store.wake_ups, "waiting", fail)  # noqa: SLF001  what is asked after a commit
    session.commit()
    monkeypatch.undo()
    assert [run.id] == [each.id for each in kit.runs()]


def test_a_chunk_that_starts_a_run_in_its_session_starts_it_with_its_commit(
    kit: BatchKit, queue: Recorded, done: Ledger
):
    child = job(numbers, work)
    fails = [True]

    def start_child(chunk: Chunk[int]) -> None:
        child.using(session=chunk.session, key=f"child of {chunk[0]}").start()
        chunk.session.commit()
        # What the chunk's session calls a commit is none yet.
        assert [] == kit.runs(job=child.name)
        assert parents == queue.woken
        if fails[0]:
            raise ValueError

    parent = job(span(1), start_child)
    parents: list[str] = []
    with contextlib.suppress(Exception):
        parent()
    assert [] == kit.runs(job=child.name)
    fails[0] = False
    parent()
    assert [run.id for run in kit.runs(job=child.name)] == queue.woken
    assert 1 == len(queue.woken)


def test_a_run_that_a_chunk_starts_may_be_worked_at_once_after_that_chunk(database_url: str, done: Ledger):
    kit = BatchKit(database_url, queue=InlineQueue())
    kit.migrate()
    child = job(numbers, work)

    def start_child(chunk: Chunk[int]) -> None:
        child.using(session=chunk.session, key=f"child of {chunk[0]}").start(n=chunk[0] + 1)

    run = job(span(3), start_child, chunk_size=1).start()
    assert (RunState.SUCCEEDED, 3) == (run.state, run.progress.done)
    assert [RunState.SUCCEEDED] * 3 == [each.state for each in kit.runs(job=child.name)]
    assert [0, 0, 0, 1, 1, 2] == done.items()
    kit.close()


def test_a_session_in_somebodys_transaction_wakes_up_once_that_is_committed(
    kit: BatchKit, queue: Recorded, done: Ledger
):
    with done.engine.connect() as connection:
        with connection.begin(), Session(connection) as session:
            connection.execute(insert(ledger), {"item": 1})
            run = job(numbers, work).using(session=session).start()
            session.commit()
            assert [] == queue.woken
        assert [run.id] == [each.id for each in kit.runs()]
    # Nobody tells of that commit. The sweep finds the run.
    assert [] == queue.woken


_KILLED = """
import os, signal, sys
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from batchkit import BatchKit, batched, span
from tests.slices.test_starting import Recorded

kit = BatchKit(sys.argv[1], queue=Recorded())

@batched(span(10), name="killed")
def work(chunk): pass

with Session(create_engine(sys.argv[1])) as session:
    event.listen(session, "after_commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    work.using(session=session).start()
    session.commit()
"""


def test_a_process_killed_between_the_commit_and_the_wake_up_leaves_a_run_that_the_sweep_finds(
    kit: BatchKit, queue: Recorded, database_url: str
):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, database_url], cwd=_ROOT, env=environment, check=False, timeout=60
    )
    assert -signal.SIGKILL == killed.returncode
    (run,) = kit.runs(job="killed")
    with kit._store.database.transaction() as tx:  # noqa: SLF001  the message is given 15 s to arrive
        tx.execute(kit._store.database.tables.partition.update().values(resend_at=None))  # noqa: SLF001  the same
    assert (run.id,) == kit.recover().woken
    assert [run.id] == queue.woken


# key


def test_the_same_key_gives_the_same_run_for_ever(kit: BatchKit, queue: Recorded):
    made = job(numbers, work)
    first = made.using(key="2026-11-24").start(n=5)
    again = made.using(key="2026-11-24").start(n=5)
    assert (first.id, False, True) == (again.id, first.was_joined, again.was_joined)
    end(kit, first)
    assert (first.id, RunState.CANCELLED) == ((last := made.using(key="2026-11-24").start(n=5)).id, last.state)
    assert ([first.id], 1) == (queue.woken, len(kit.runs()))
    assert "started with the key '2026-11-24'" == first.history()[0].reason


@pytest.mark.parametrize("key", ["x" * 10_000, "\0", "\ud800", "ß", "a'b"])
def test_a_key_is_any_text(kit: BatchKit, key: str):
    made = job(numbers, work)
    assert made.using(key=key).start().id == made.using(key=key).start().id


def test_keys_that_a_database_might_take_for_equal_are_different(kit: BatchKit):
    made = job(numbers, work)
    assert 4 == len({made.using(key=key).start().id for key in ("a", "A", "a ", "á")})


def test_the_same_key_of_another_job_is_another_key(kit: BatchKit):
    assert job(numbers, work).using(key="k").start().id != job(numbers, work).using(key="k").start().id


def test_the_same_key_with_other_params_or_terms_is_refused_with_both(kit: BatchKit):
    made = job(numbers, work)
    first = made.using(key="k").start(n=5)
    with pytest.raises(KeyTaken) as refused:
        made.using(key="k").start(n=6)
    said = str(refused.value)
    for part in ("the key 'k'", first.id, '{"n":5,"label":"x"}', '{"n":6,"label":"x"}'):
        assert part in said
    with pytest.raises(KeyTaken, match="dry_run=True"):
        made.using(key="k", dry_run=True).start(n=5)
    with pytest.raises(KeyTaken, match="limit=3, after=1"):
        made.using(key="k", limit=3, after=1).start(n=5)
    assert first.id == made.using(key="k", queue="elsewhere").start(n=5).id


def test_a_param_that_the_job_has_got_since_counts_with_its_default(kit: BatchKit):
    def before(n: int = 10) -> Source[int]:
        return span(n)

    def work_before(chunk: Chunk[int], n: int = 10) -> None: ...

    run = job(before, work_before).start()
    definition = JOBS[job(numbers, work).name]
    for params, is_same in (({}, True), ({"label": "y"}, False), ({"n": 5}, False)):
        wanted = new_run(definition, definition.pack((), params), commits_together=True)
        assert is_same is is_same_start(definition, kit._store.records.load(run.id), wanted)  # noqa: SLF001  the record


def test_a_key_in_a_session_joins_its_own_run_and_others(kit: BatchKit, queue: Recorded, session: Session):
    made = job(numbers, work)
    there = made.using(key="there").start()
    assert there.id == made.using(key="there", session=session).start().id
    new = made.using(key="new", session=session).start()
    again = made.using(key="new", session=session).start()
    assert (new.id, True) == (again.id, again.was_joined)
    session.commit()
    assert [there.id, new.id] == queue.woken


def test_a_start_that_is_refused_leaves_the_users_transaction_alive(
    kit: BatchKit, session: Session, done: Ledger, monkeypatch: pytest.MonkeyPatch
):
    """Another is quicker: it commits between the look for the key and the insert."""
    made = job(numbers, work)
    session.execute(insert(ledger), {"item": 1})
    starts = kit._store.starts  # noqa: SLF001  the moment between the two
    look = starts._existing  # noqa: SLF001  the same
    others: list[Run] = []

    def be_slow(tx, new):
        found = look(tx, new)
        if not others and kit._store.database.engine.dialect.name != "sqlite":  # noqa: SLF001  one writer
            monkeypatch.undo()
            others.append(made.using(key="k").start())
        return found

    monkeypatch.setattr(starts, "_existing", be_slow)
    run = made.using(key="k", session=session).start()
    session.commit()
    assert 1 == done.count()
    assert [run.id] == [each.id for each in kit.runs()]
    assert run.was_joined is bool(others)


# unique


def test_one_unfinished_run_with_the_same_params(kit: BatchKit, queue: Recorded):
    made = job(numbers, work, unique=True)
    first = made.start(n=5)
    other = made.start(n=6)
    with pytest.raises(RunActive, match=f"run {first.id} of {made.name} has not ended") as refused:
        made.start(n=5)
    assert first.id == refused.value.run_id
    with pytest.raises(RunActive):
        made(n=5)
    assert [first.id, other.id] == queue.woken
    taken = made.using(if_active="return").start(n=5)
    assert (first.id, True) == (taken.id, taken.was_joined)
    end(kit, first)
    assert first.id != made.start(n=5).id


def test_the_unique_key_may_be_part_of_the_params(kit: BatchKit):
    made = job(numbers, work, unique=lambda n, label: label)
    first = made.start(n=5, label="a")
    made.start(n=5, label="b")
    with pytest.raises(RunActive, match=first.id):
        made.start(n=7, label="a")


def test_a_paused_run_keeps_its_unique_key(kit: BatchKit):
    made = job(numbers, work, unique=True)
    run = made.start().pause()
    with pytest.raises(RunActive):
        made.start()
    assert RunState.QUEUED == run.resume().state


def test_a_failed_run_is_resumed_only_where_no_other_has_its_key(kit: BatchKit, done: Ledger):
    fails = [True]

    def sometimes(chunk: Chunk[int], n: int = 10, label: str = "x") -> None:
        if fails[0]:
            raise ValueError
        write(chunk)

    made = job(numbers, sometimes, unique=True)
    with contextlib.suppress(Exception):
        made()
    (failed,) = kit.runs()
    assert RunState.FAILED == failed.state
    other = made.start()
    with pytest.raises(RunActive, match=f"run {other.id} .* cannot resume run {failed.id}"):
        failed.resume()
    assert RunState.FAILED == failed.refresh().state
    end(kit, other)
    assert RunState.QUEUED == failed.resume().state
    with pytest.raises(RunActive, match=failed.id):
        made.start()


def test_a_rerun_takes_the_unique_key_too(kit: BatchKit):
    made = job(numbers, work, unique=True)
    run = made.start()
    with pytest.raises(RunActive):
        run.rerun()
    end(kit, run)
    again = run.rerun()
    with pytest.raises(RunActive, match=again.id):
        made.start()


def test_a_key_comes_before_the_unique_key(kit: BatchKit):
    made = job(numbers, work, unique=True)
    run = made.using(key="k").start()
    assert run.id == made.using(key="k").start().id
    with pytest.raises(RunActive):
        made.using(key="other").start()
    end(kit, run)
    made.start()
    assert run.id == made.using(key="k").start().id


def test_a_unique_key_in_a_session(kit: BatchKit, session: Session):
    made = job(numbers, work, unique=True)
    run = made.using(session=session).start()
    with pytest.raises(RunActive, match=run.id):
        made.using(session=session).start()
    taken = made.using(session=session, if_active="return").start()
    assert (run.id, True) == (taken.id, taken.was_joined)
    session.commit()
    with pytest.raises(RunActive, match=run.id):
        made.start()


def test_if_active_does_nothing_where_runs_are_not_unique(kit: BatchKit):
    with pytest.raises(InvalidStart, match="any number of runs may be unfinished"):
        job(numbers, work).using(if_active="return").start()


def test_a_unique_key_that_cannot_be_made_is_told_with_the_params(kit: BatchKit):
    def broken(n: int, label: str) -> object:
        raise LookupError("no tenant")

    with pytest.raises(InvalidParams, match=r"the unique key cannot be made of .*no tenant"):
        job(numbers, work, unique=broken).start()
    with pytest.raises(InvalidParams, match="cannot be stored"):
        job(numbers, work, unique=lambda n, label: object()).start()


@pytest.mark.parametrize("unique", ["tenant_id", 5, lambda n: n, lambda n, label, more: n, int])
def test_what_cannot_make_a_unique_key_is_refused_at_decoration(unique: object):
    with pytest.raises(InvalidJob, match=r"unique=lambda n, label: \.\.\."):
        job(numbers, work, unique=unique)


def test_each_commit_of_a_session_wakes_what_it_has_committed(kit: BatchKit, queue: Recorded, session: Session):
    made = job(numbers, work)
    runs = [made.using(session=session).start() for _ in range(3)]
    session.commit()
    runs.append(made.using(session=session).start())
    session.commit()
    assert [run.id for run in runs] == queue.woken
