"""A test for resumables: work one with a new generator for each step, which finds a cursor that was forgotten."""

from __future__ import annotations

from typing import ParamSpec, TypeVar, cast

from batchkit.app import BatchKit
from batchkit.errors import BatchkitError, InvalidJob, RunFailed
from batchkit.job import JOBS, ResumableJob, current_kit
from batchkit.model import Lease
from batchkit.run import Run
from batchkit.states import RunState
from batchkit.stopping import Stop

P = ParamSpec("P")
C = TypeVar("C")

_GOES_ON = frozenset({RunState.QUEUED, RunState.RUNNING})
_STEPS_WITHOUT_NEWS = 100


class CursorForgotten(BatchkitError, AssertionError):
    """Raised when a resumable that is called anew for each step comes to no place where it has not been."""

    def __init__(self, job: str, *, run_id: str, steps: int, cursor: str | None) -> None:
        self.job = job
        self.run_id = run_id
        self.steps = steps
        self.cursor = cursor
        super().__init__(
            f"run {run_id} of {job} was called anew behind each yield, and in the last {steps} steps it yielded no "
            f"cursor that it had not yielded before (the last was {cursor}): it would do the same again after each "
            f"crash. Let the function begin at `steps.cursor`, and yield what is enough to go on"
        )


def restart_after_every_yield(job: ResumableJob[P, C], /, *args: P.args, **kwargs: P.kwargs) -> Run:
    """
    Start a run and work it in this process, with a new generator for each step, as if each yield met a deploy.

    What the function keeps in its own variables is not there any more then, so that what it left out of its cursor
    shows: in what it has written, or in that it never ends.

    Raises:
        RunFailed: the run failed; the error of the job is its cause.
        CursorForgotten: it comes to no new cursor any more, nor to another `steps.carry`.
        InvalidJob: the job is none that yields.
    """
    definition = JOBS[job.name]
    if not definition.is_resumable:
        raise InvalidJob(f"{job.name} is not @resumable, so it never yields")
    kit = cast("BatchKit", current_kit())
    run = kit.start_run_here(definition, definition.pack(args, kwargs))
    places: set[tuple[str | None, str]] = set()
    steps_without_news = 0
    while run.state in _GOES_ON:
        place = _work_one_step(kit, run)
        steps_without_news = 0 if place not in places else steps_without_news + 1
        places.add(place)
        if steps_without_news == _STEPS_WITHOUT_NEWS:
            run.cancel()
            raise CursorForgotten(job.name, run_id=run.id, steps=_STEPS_WITHOUT_NEWS, cursor=place[0])
    return run


def _work_one_step(kit: BatchKit, run: Run) -> tuple[str | None, str]:
    """Work a run until its next commit, and give the cursor and the carry that were committed."""
    place: tuple[str | None, str] = (None, "{}")

    def stop_there(lease: Lease) -> None:
        nonlocal place
        place = (lease.cursor, lease.carry)
        stop.request("every step is to begin anew")

    with Stop() as stop:
        outcome = kit.work_run(run.id, stop=stop, watch=stop_there)
    if run.refresh().state is RunState.FAILED:
        raise RunFailed(run.id, job=run.job, error=str(run.error)) from (outcome.error if outcome is not None else None)
    return place
