"""Runs that are worked in the test's own process, and stopped between chunks."""

from __future__ import annotations

from typing import ParamSpec, cast

from batchkit.app import BatchKit
from batchkit.errors import RunFailed
from batchkit.job import JOBS, Startable, current_kit
from batchkit.model import Lease
from batchkit.run import Run
from batchkit.slicing import Ending, Outcome
from batchkit.states import RunState
from batchkit.stopping import Stop

P = ParamSpec("P")

_GOES_ON = frozenset({RunState.QUEUED, RunState.RUNNING})


def run_inline(job: Startable[P], /, *args: P.args, **kwargs: P.kwargs) -> Run:
    """
    Start a run and work it in this process until it ends or is paused, whatever the queue of the kit is.

    Raises:
        RunFailed: the run failed; the error of the job is its cause.
    """
    return go_on(_start(job, *args, **kwargs))


def interrupt_after(chunks: int, job: Startable[P], /, *args: P.args, **kwargs: P.kwargs) -> Run:
    """
    Start a run and stop it once so many chunks are committed, as a deploy does: it is then `queued`, for `go_on`.

    A run with fewer chunks ends.

    Raises:
        RunFailed: the run failed before that.
    """
    return go_on(_start(job, *args, **kwargs), chunks=chunks)


def go_on(run: Run, *, chunks: int | None = None) -> Run:
    """
    Work a run on in this process: until it ends or is paused, or until so many chunks more are committed.

    Raises:
        RunFailed: the run failed; the error of the job is its cause.
    """
    if chunks is not None and (isinstance(chunks, bool) or chunks < 1):
        raise ValueError(f"chunks is the number of chunks to commit before the interruption, 1 or more: got {chunks!r}")
    _work(run, chunks=chunks)
    return run


def restart_after_every_chunk(job: Startable[P], /, *args: P.args, **kwargs: P.kwargs) -> Run:
    """
    Start a run and work it to its end, each chunk in a slice of its own, which begins anew behind the last commit.

    What a job keeps anywhere else than in the database, in `chunk.carry` or in its cursor is not there any more then.

    Raises:
        RunFailed: the run failed; the error of the job is its cause.
    """
    run = _start(job, *args, **kwargs)
    while run.state in _GOES_ON:
        _work(run, chunks=1)
    return run


def _start(job: Startable[P], *args: P.args, **kwargs: P.kwargs) -> Run:
    definition = JOBS[job.name]
    return _kit().start_run_here(definition, definition.pack(args, kwargs))


def _kit() -> BatchKit:
    return cast("BatchKit", current_kit())


def _work(run: Run, *, chunks: int | None) -> Outcome | None:
    committed = 0

    def count(_: Lease) -> None:
        nonlocal committed
        committed += 1
        if committed == chunks:
            stop.request(f"interrupted after {committed} chunks")

    with Stop() as stop:
        outcome = _kit().work_run(run.id, stop=stop, watch=count)
    if outcome is not None and outcome.ending is Ending.DECLINED and outcome.error is not None:
        raise outcome.error
    if run.refresh().state is RunState.FAILED:
        cause = outcome.error if outcome is not None else None
        raise RunFailed(run.id, job=run.job, error=str(run.error)) from cause
    return outcome
