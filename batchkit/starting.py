"""What starting a run writes: the job, the params and the terms brought together."""

from __future__ import annotations

import hashlib

from batchkit.errors import InvalidParams, InvalidStart, NotSerializable
from batchkit.job import Definition
from batchkit.model import NewRun, RunId, RunRecord
from batchkit.planning import Cursors, make_source
from batchkit.promises import EXACTLY_ONCE, cannot_commit_together, promised
from batchkit.sources.base import Continued
from batchkit.starting_keys import KEYS_OF_USERS
from batchkit.using import NO_TERMS, Terms
from batchkit.values import dumps

#: Queues begin the start keys of their messages with their own names, and no queue is called so.


def new_run(
    job: Definition,
    params: str,
    *,
    commits_together: bool,
    terms: Terms = NO_TERMS,
    start_key: str | None = None,
    message: str | None = None,
) -> NewRun:
    """
    Say what a start writes; *start_key* and *message* are those of a queue's message that makes it.

    Raises:
        InvalidStart: the terms do not fit the job, or it asks for exactly once where chunks and their checkpoints
            cannot commit together.
        InvalidParams: the job's unique key cannot be made of the params.
    """
    if terms.if_active == "return" and not job.options.unique:
        raise InvalidStart(
            f"if_active='return' does nothing for {job.name}, of which any number of runs may be unfinished; "
            f"say what is unique: @batched(..., unique=True)"
        )
    if job.options.delivery == EXACTLY_ONCE and not commits_together:
        raise InvalidStart(cannot_commit_together(job.name))
    if job.is_resumable and (terms.partitions or 1) > 1:
        raise InvalidStart(
            f"{job.name} is a resumable, whose generator alone knows what comes next, so it cannot be cut into "
            f"partitions; leave partitions out"
        )
    return NewRun(
        job=job.name,
        params=params,
        queue=terms.queue or job.options.queue,
        delivery=promised(job.options.delivery, commits_together=commits_together),
        start_key=start_key if terms.key is None else KEYS_OF_USERS + _digest(job, terms.key),
        message=message,
        key=terms.key,
        unique_key=_unique_key(job, params),
        after=None if terms.after is None else _written_cursor(job, params, terms.after),
        limit=terms.limit,
        is_dry_run=terms.dry_run,
        partitions=1 if terms.limit is not None else terms.partitions or job.options.partitions,
        max_workers=terms.max_workers or job.options.max_workers,
    )


def key_of_retries(run_id: RunId) -> str:
    """Give the unique key under which the failures of a run are tried again, one such run at a time."""
    return hashlib.sha256(f"the failures of {run_id}".encode()).hexdigest()


def is_same_start(job: Definition, record: RunRecord, new: NewRun) -> bool:
    """Tell whether a run is what *new* asks for; a param that the job has got since counts with its default."""
    if (record.limit, record.is_dry_run, record.after) != (new.limit, new.is_dry_run, new.after):
        return False
    try:
        return job.pack((), job.params(record.params)) == new.params
    except InvalidParams:
        return False


def shown_start(start: RunRecord | NewRun) -> str:
    """Show the params and the terms that make a start another than the next, for people."""
    terms = {"limit": start.limit, "after": start.after, "dry_run": start.is_dry_run or None}
    shown = [f"{name}={value}" for name, value in terms.items() if value is not None]
    return ", ".join([start.params, *shown])


def _unique_key(job: Definition, params: str) -> str | None:
    unique = job.options.unique
    if not unique:
        return None
    if unique is True:
        return _digest(job, params)
    try:
        return _digest(job, dumps(unique(**job.params(params)), where="what it returned"))
    except Exception as error:  # the function is the user's
        raise InvalidParams(job.name, f"the unique key cannot be made of {params}: {error}") from error


def _digest(job: Definition, text: str) -> str:
    return hashlib.sha256(f"{job.name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _written_cursor(job: Definition, params: str, after: object) -> str:
    source = make_source(job, job.params(params))
    if isinstance(source, Continued):
        source.behind(after)
    try:
        return Cursors(source).write(after)
    except NotSerializable as error:
        raise InvalidStart(f"after is a cursor of the source of {job.name}: {error}") from error
