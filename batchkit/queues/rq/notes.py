"""
What batchkit keeps in an RQ job's meta, and what it reads from RQ about one use of the job's id.

An id is used many times: by a fixed `job_id`, by `Repeat`, by schedulers that enqueue the same job each night. What was
kept of one use says nothing of the next.
"""

from __future__ import annotations

from typing import Any

from rq.job import Job
from rq.results import Result

_NOTES = "batchkit"
#: Which run a job wakes a worker up for, and how.
RUN, PARTITION, WAKE, HOPS = "run", "partition", "wake", "hops"
#: The key of the message that the job is, where it is another than that of its first use.
KEY = "key"
_OF, _TOLD_AFTER, _ENQUEUED = "of", "told_after", "enqueued"

_TOLD = {kind.value for kind in (Result.Type.SUCCESSFUL, Result.Type.FAILED, Result.Type.STOPPED)}
_LONGEST_KEY = 200


def notes_of(job: Job) -> dict[str, Any]:
    """Give what was kept of this use of the job's id."""
    notes = job.meta.get(_NOTES)
    return notes if isinstance(notes, dict) and notes.get(_OF) == _use_of(job) else {}


def note(job: Job, **values: object) -> None:
    """Keep *values* with what was kept of this use of the job's id; the caller saves the meta."""
    job.meta[_NOTES] = {**notes_of(job), **values, _OF: _use_of(job)}


def key_of(job: Job) -> str:
    """Name this use of the job's id among all messages; what RQ retries has the same name."""
    return str(notes_of(job).get(KEY) or f"rq:{job.id[:_LONGEST_KEY]}:{_use_of(job)}")


def begin_again(job: Job) -> None:
    """Make of a job that ended, and was enqueued again, a message of its own."""
    latest, _ = _latest_result(job)
    job.meta.pop(_NOTES, None)
    note(job, **{KEY: f"{key_of(job)}:{latest}"})
    job.save_meta()


def note_end(job: Job) -> None:
    """Keep what tells later whether RQ has told of the end that the job is about to give."""
    latest, _ = _latest_result(job)
    note(job, **{_TOLD_AFTER: latest, _ENQUEUED: _enqueued(job)})
    job.save_meta()


def was_told(job: Job) -> bool:
    """Tell whether RQ has told of the job's end, callbacks included."""
    notes = notes_of(job)
    if _TOLD_AFTER not in notes:
        return False
    latest, kind = _latest_result(job)
    return kind in _TOLD and latest != notes[_TOLD_AFTER]


def is_asked_for_again(job: Job) -> bool:
    """
    Tell whether somebody has enqueued the job again since RQ has told of its end.

    A copy of its id that was left in the queue is no such thing: it does not change when the job was enqueued.
    """
    return was_told(job) and _enqueued(job) > notes_of(job)[_ENQUEUED]


def _use_of(job: Job) -> str:
    return f"{job.created_at:%Y%m%dT%H%M%S.%f}:{getattr(job, 'repeats_left', None) or 0}"


def _enqueued(job: Job) -> str:
    # As it stands in Redis now: the object has it from before the job was enqueued for this time.
    job_now = job.connection.hget(job.key, "enqueued_at")
    return job_now.decode() if job_now is not None else ""


def _latest_result(job: Job) -> tuple[str, int]:
    """Give the id and the type of the newest result, which RQ writes when a job has ended; never its value."""
    found = job.connection.xrevrange(Result.get_key(job.id), "+", "-", count=1)
    if not found:
        return "", 0
    latest, values = found[0]
    return latest.decode(), int(values[b"type"])
