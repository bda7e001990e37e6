"""A job is killed at each commit: a good one passes, and one with a bug is found, with the rows that show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, inspect

from batchkit import Chunk, batched, span
from batchkit.testing import CrashTest, CrashTestFailed, InvalidCrashTest, crash_test
from tests.testing import jobs

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that jobs leave files in."""
    monkeypatch.setenv(jobs.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_a_good_job_passes_on_each_database(database_url: str):
    # Seven customers by threes are three chunks, and the finish is one commit more.
    passed = crash_test(jobs.good, setup=jobs.setup, ignore=["invoice.written_at"], database=database_url)
    assert CrashTest(commits=4, kills=8) == passed
    assert [] == _tables(database_url)


def test_a_job_in_partitions_passes():
    # Three and four customers by threes are one chunk and two.
    ignored = ["invoice.written_at", "invoice.id", "line.invoice_id"]  # which partition comes first is chance
    passed = crash_test(jobs.good_in_parts, setup=jobs.setup, ignore=ignored)
    assert CrashTest(commits=4, kills=8) == passed


def test_effects_outside_the_transaction_are_found_with_the_place_and_the_rows(database_url: str):
    with pytest.raises(CrashTestFailed) as failed:
        crash_test(jobs.appends_to_a_file, setup=jobs.setup, snapshot=jobs.written, database=database_url)
    assert [f"right before commit {number} of 3" for number in (1, 2, 3)] == [one.killed for one in failed.value.failed]
    text = str(failed.value)
    assert "tests.testing.jobs.appends_to_a_file was killed 6 times and came 3 times to another end" in text
    assert r"file: 3 too many: 'invoice for 0\n' | 'invoice for 3\n' | 'invoice for 6\n'" in text
    assert r"file: 1 too many: 'invoice for 18\n'" in text
    assert "chunk.key(item)" in text


def test_a_finish_that_acts_outside_is_found_at_the_last_commit():
    with pytest.raises(CrashTestFailed) as failed:
        crash_test(jobs.announces_twice, setup=jobs.setup, snapshot=jobs.written)
    (only,) = failed.value.failed
    assert "right before commit 3 of 3" == only.killed
    assert [r"file: 1 too many: '7 are done\n'"] == only.differences


def test_what_is_lost_with_the_process_is_found_behind_commits():
    with pytest.raises(CrashTestFailed) as failed:
        crash_test(jobs.appends_after_the_commit, setup=jobs.setup, snapshot=jobs.written)
    assert [f"right after commit {number} of 3" for number in (1, 2, 3)] == [one.killed for one in failed.value.failed]
    assert r"file: 1 missing: 'invoice for 18\n'" in str(failed.value)


def test_what_the_process_remembers_is_found_though_only_the_database_is_looked_at():
    with pytest.raises(CrashTestFailed) as failed:
        crash_test(jobs.counts_in_memory, setup=jobs.setup)
    assert ["table total: 1 missing: invoices=7"] == failed.value.failed[-1].differences
    assert "right before commit 3 of 3" == failed.value.failed[-1].killed


def test_writes_of_another_session_are_found(postgres_url: str):
    with pytest.raises(CrashTestFailed, match=r"table total: 3 too many: invoices=0 \| invoices=3 \| invoices=6"):
        crash_test(jobs.writes_with_another_session, setup=jobs.setup, database=postgres_url, most=2)


def test_an_adaptive_job_is_cut_into_small_chunks_so_that_there_is_something_to_kill():
    ignored = ["invoice.written_at"]
    assert 2 == crash_test(jobs.adaptive, setup=jobs.setup, ignore=ignored).commits
    assert CrashTest(commits=7, kills=4) == crash_test(
        jobs.adaptive, setup=jobs.setup, ignore=ignored, chunk_size=1, most=5, kit=jobs.kit
    )


def test_a_job_that_isolates_an_item_passes():
    # Three good ones twice, then the bad one: it stands in a checkpoint of its own.
    assert 3 == crash_test(jobs.one_item_fails, setup=jobs.setup, ignore=["invoice.written_at"]).commits


def test_two_runs_that_differ_anyway_are_not_blamed_on_the_kills():
    with pytest.raises(InvalidCrashTest, match=r"two undisturbed runs come to different ends.*ignore=.*table clock"):
        crash_test(jobs.good, setup=jobs.setup_with_clock, ignore=["invoice.written_at"], most=2)


def test_a_database_that_holds_tables_is_refused_and_left_as_it_is(sqlite_url: str):
    engine = create_engine(sqlite_url)
    jobs.customer.create(engine)
    with engine.begin() as tx:
        tx.execute(insert(jobs.customer).values(id=1, name="real"))
    with pytest.raises(InvalidCrashTest, match=r"is not empty.*customer.*a database of its own"):
        crash_test(jobs.good, setup=jobs.setup, database=sqlite_url)
    with engine.connect() as tx:
        assert [(1, "real")] == [tuple(row) for row in tx.execute(jobs.customer.select())]
    engine.dispose()


def test_a_job_that_cannot_be_tested_is_refused_with_the_reason():
    with pytest.raises(InvalidCrashTest, match="no item"):
        crash_test(jobs.has_no_items, setup=jobs.setup)
    with pytest.raises(InvalidCrashTest, match=r"does not succeed even undisturbed.*no customer is good enough"):
        crash_test(jobs.fails, setup=jobs.setup)
    with pytest.raises(InvalidCrashTest, match=r"ignore='invoice.when' is no column.*invoice\.written_at"):
        crash_test(jobs.good, setup=jobs.setup, ignore=["invoice.when"])
    with pytest.raises(InvalidCrashTest, match=r"gives a kit with .*Queue; give it none"):
        crash_test(jobs.good, setup=jobs.setup, kit=jobs.kit_on_celery)


def test_what_another_process_cannot_import_is_refused_at_once():
    @batched(span(3), name="tests.testing.local")
    def local(chunk: Chunk[int]) -> None: ...

    with pytest.raises(InvalidCrashTest, match=r"is made inside a function.*at module level"):
        crash_test(local, setup=jobs.setup)
    with pytest.raises(InvalidCrashTest, match=r"setup is <function .*lambda.*at module level"):
        crash_test(jobs.good, setup=lambda engine: None)
    with pytest.raises(InvalidCrashTest, match="most is how often to kill at most, 2 or more: got 1"):
        crash_test(jobs.good, setup=jobs.setup, most=1)
    with pytest.raises(InvalidCrashTest, match=r"chunk_size is .*: got 0"):
        crash_test(jobs.good, setup=jobs.setup, chunk_size=0)


def _tables(url: str) -> list[str]:
    engine = create_engine(url)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    return tables
