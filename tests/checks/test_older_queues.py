"""The queues on the oldest Celery and RQ that are supported: their signals and internals change between releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checks.older import older_python, run

_OLDEST = ("celery[redis]==5.4.0", "kombu<5.5", "rq==2.2.0")
#: What touches most of what releases differ in.
_TESTS = (
    "tests/queues/test_celery_shutdown.py::test_a_prefork_worker_is_ended[SIGTERM all]",
    "tests/queues/test_celery_messages.py::test_a_chain_survives_shutdowns_and_kills",
    "tests/queues/test_celery_messages.py::test_autoretry_does_not_keep_a_failure_from_being_told",
    "tests/queues/test_celery_messages.py::test_a_hard_time_limit_is_an_interruption",
    "tests/queues/test_celery_consuming.py",
    "tests/queues/test_rq_shutdown.py::test_a_worker_is_ended[SIGTERM all-started]",
    "tests/queues/test_rq_messages.py::test_what_depends_on_a_job_waits_for_its_real_end",
    "tests/queues/test_rq_messages.py::test_a_killed_horse_is_no_failure_to_those_who_wait",
    "tests/queues/test_rq_messages.py::test_a_failed_job_that_is_requeued_goes_on_where_it_failed",
    "tests/queues/test_rq_messages.py::test_a_copy_that_comes_after_the_end_leaves_the_job_as_it_is",
)


@pytest.fixture(scope="module")
def oldest_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a Python with the oldest queues and our other packages."""
    python = older_python(tmp_path_factory.mktemp("older-queues"), *_OLDEST)
    said = run(python, "-c", "import celery; from rq.version import VERSION; print(celery.__version__, VERSION)")
    assert "5.4.0 2.2.0" == said.strip()
    return python


@pytest.mark.timeout(600)
def test_the_oldest_celery_and_rq_do(oldest_python: Path):
    said = run(oldest_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *_TESTS)
    assert " passed" in said.splitlines()[-1]
    assert "skipped" not in said.splitlines()[-1]
