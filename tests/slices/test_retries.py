"""What the job's policy names is tried again."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed, wait_none

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import InvalidJob
from batchkit.job import JOBS
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write

_THREE_TIMES = Retrying(stop=stop_after_attempt(3), wait=wait_none())


class Flaky:
    """A function that fails so often at each chunk before it works."""

    def __init__(self, times: int, error: type[Exception] = ConnectionError) -> None:
        self.times = times
        self._error = error
        self.attempts: list[int] = []

    def __call__(self, chunk: Chunk[int]) -> None:
        self.attempts.append(chunk.attempt)
        write(chunk)
        if chunk.attempt <= self.times:
            raise self._error("the API was away")


def _flaky(flaky: Flaky, **options: Any) -> Any:
    def work(chunk: Chunk[int]) -> None:
        flaky(chunk)

    return job(span(20), work, chunk_size=10, **options)


def test_a_chunk_is_tried_again_as_the_policy_says_and_the_run_shows_it(kit: BatchKit, done: Ledger):
    flaky = Flaky(2)
    run = _flaky(flaky, retry=_THREE_TIMES).start()
    assert (RunState.SUCCEEDED, 20, 0) == (run.state, run.progress.done, run.progress.failed)
    assert [1, 2, 3, 1, 2, 3] == flaky.attempts
    assert list(range(20)) == done.items()
    assert 4 == run.retries
    assert run.retry_reason == "attempt 2 behind the cursor 9: ConnectionError: the API was away"


def test_an_error_that_the_policy_does_not_name_is_not_tried_again(kit: BatchKit, done: Ledger):
    flaky = Flaky(1, ValueError)
    policy = Retrying(stop=stop_after_attempt(9), retry=retry_if_exception_type(ConnectionError))
    run = _flaky(flaky, retry=policy).start()
    assert (RunState.FAILED, 0) == (run.state, run.retries)
    assert run.error is not None
    assert "tenacity" not in run.error.traceback


def test_halving_is_not_slowed_by_the_policy_and_the_last_item_is_given_all_tries(kit: BatchKit, done: Ledger):
    sizes: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        sizes.append(len(chunk))
        write(chunk)
        if 7 in chunk:
            raise ConnectionError("no answer for item 7")

    run = job(span(16), work, chunk_size=16, max_failures=1, retry=_THREE_TIMES).start()
    assert (RunState.SUCCEEDED, 15, 1) == (run.state, run.progress.done, run.progress.failed)
    assert 3 == run.failures()[0].attempts
    assert 3 == sizes.count(16)
    assert [8, 4, 2, 1, 1, 1, 1] == sizes[3:10]
    assert [item for item in range(16) if item != 7] == done.items()


def test_a_policy_that_raises_its_own_error_still_isolates_the_item(kit: BatchKit, done: Ledger):
    run = _flaky(Flaky(99), max_failures=20, retry=Retrying(stop=stop_after_attempt(2), reraise=False)).start()
    assert (RunState.SUCCEEDED, 0, 20) == (run.state, run.progress.done, run.progress.failed)
    assert {"ConnectionError"} == {each.error_type for each in run.failures()}


def test_a_wait_ends_at_once_when_the_worker_is_to_stop(kit: BatchKit, done: Ledger):
    stop = Stop()
    policy = Retrying(stop=stop_after_attempt(9), wait=wait_fixed(3600), before_sleep=lambda _: stop.request("SIGTERM"))
    flaky = Flaky(1)
    made = _flaky(flaky, retry=policy)
    run = kit.start_run_here(JOBS[made.name], "{}")
    outcome = kit.work_run(run.id, stop=stop)
    assert outcome is not None
    assert (Ending.INTERRUPTED, RunState.QUEUED, 1) == (outcome.ending, run.refresh().state, run.retries)
    flaky.times = 0
    with Stop() as never:
        kit.work_run(run.id, stop=never)
    assert (RunState.SUCCEEDED, list(range(20))) == (run.refresh().state, done.items())


def test_a_long_wait_is_no_chunk_that_hangs(kit: BatchKit, done: Ledger):
    policy = Retrying(stop=stop_after_attempt(2), wait=wait_fixed(4.5))
    # Taken for a chunk, the wait would outlast both.
    run = _flaky(Flaky(1), retry=policy, lease=2, chunk_timeout=1.5).start()
    assert (RunState.SUCCEEDED, None, 0) == (run.state, run.waiting_reason, run.progress.interruptions)
    assert list(range(20)) == done.items()


@pytest.mark.parametrize("retry", [3, "twice", tenacity.AsyncRetrying(), tenacity.retry])
def test_what_is_no_policy_is_refused(retry: Any):
    with pytest.raises(InvalidJob, match="Retrying"):
        job(span(1), write, retry=retry)
