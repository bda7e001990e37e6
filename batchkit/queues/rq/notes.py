"""
What batchkit keeps in an RQ job's meta, and what it reads from RQ about one use of the job's id.

An id is used many times: by a fixed `job_id`, by `Repeat`, by schedulers that enqueue the same job each night. What was
kept of one use says nothing of the next.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rq.job import Job
from rq.results import Result

from batchkit.model import WakeUp

_NOTES = "batchkit"
#: Which run a job wakes a worker up for, and how.
RUN, PARTITION, WAKE, HOPS = "run", "partition", "wake", "hops"
_OF, _TOLD, _TOLD_AFTER, _ENQUEUED = "of", "told", "told_after", "enqueued"

_ENDINGS = {kind.value for kind in (Result.Type.SUCCESSFUL, Result.Type.FAILED, Result.Type.STOPPED)}
_MOMENT = "%Y%m%dT%H%M%S.%f%z"


def notes_of(job: Job) -> dict[str, Any]:
    """Give what was kept of this use of the job's id."""
    notes = job.meta.get(_NOTES)
    return notes if isinstance(notes, dict) and notes.get(_OF) == use_of(job) else {}


def note(job: Job, **values: object) -> None:
    """Keep *values* with what was kept of this use of the job's id; the caller saves the meta."""
    job.meta[_NOTES] = {**notes_of(job), **values, _OF: use_of(job)}


def of_wake_up(wake_up: WakeUp, hops: int) -> dict[str, int]:
    """Give what is kept of a wake-up that a job carries, and that workers which cannot take it have handed on."""
    return {PARTITION: wake_up.partition, WAKE: wake_up.number, HOPS: hops}


def use_of(job: Job) -> str:
    """Name this use of the job's id; what RQ retries and requeues has the same name."""
    repeats_left = getattr(job, "repeats_left", None) or 0
    return f"{job.created_at.strftime(_MOMENT)}/{repeats_left}"


def made_again_for(use: str, job: Job) -> None:
    """Make *job*, which takes the place of one that Redis has lost, the same use of the id."""
    job.created_at = datetime.strptime(use.partition("/")[0], _MOMENT)  # noqa: DTZ007  the text has the zone, if any


def note_end(job: Job, run_id: str) -> None:
    """Keep what tells later whether RQ has told of the end of a run that the job is about to give."""
    latest, _ = _latest_result(job)
    note(job, **{_TOLD: run_id, _TOLD_AFTER: latest, _ENQUEUED: _enqueued(job)})
    job.save_meta()


def was_told(job: Job, run_id: str) -> bool:
    """Tell whether RQ has told of the end of a run, callbacks included."""
    notes = notes_of(job)
    if notes.get(_TOLD) != run_id:
        return False
    latest, kind = _latest_result(job)
    return kind in _ENDINGS and latest != notes[_TOLD_AFTER]


def is_asked_for_again(job: Job, run_id: str) -> bool:
    """
    Tell whether somebody has enqueued the job again since RQ has told of the end of a run.

    A copy of its id that was left in the queue is no such thing: it does not change when the job was enqueued.
    """
    return was_told(job, run_id) and _enqueued(job) > notes_of(job)[_ENQUEUED]


def success_before(job: Job) -> str:
    """
    Name the last time that the job has succeeded before it was enqueued; empty where RQ remembers none.

    A copy of its id that is worked after a success was not enqueued after it.
    """
    enqueued_at = job.enqueued_at.timestamp() * 1000 if job.enqueued_at is not None else 0.0
    for found, values in job.connection.xrevrange(Result.get_key(job.id), "+", "-"):
        milliseconds = int(found.partition(b"-")[0])
        if int(values[b"type"]) == Result.Type.SUCCESSFUL.value and milliseconds < enqueued_at:
            return str(found.decode())
    return ""


def _enqueued(job: Job) -> str:
    # As it stands in Redis now: the object has it from before the job was enqueued for this time.
    found = job.connection.hget(job.key, "enqueued_at")
    return found.decode() if found is not None else ""


def _latest_result(job: Job) -> tuple[str, int]:
    """Give the id and the type of the newest result, which RQ writes when a job has ended; never its value."""
    found = job.connection.xrevrange(Result.get_key(job.id), "+", "-", count=1)
    if not found:
        return "", 0
    latest, values = found[0]
    return latest.decode(), int(values[b"type"])
