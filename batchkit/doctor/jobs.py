"""The jobs: whether their chunks fit the grace, and whether workers can import them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from batchkit.doctor.findings import Finding, Level
from batchkit.grace import VARIABLE, working_seconds
from batchkit.job import Definition

#: Runs that ended longer ago say little about how the job is now.
RECENT_SECONDS = 24 * 3600.0


def grace_findings(
    jobs: Iterable[Definition], chunk_seconds: Mapping[str, float], *, grace: float | None
) -> Iterator[Finding]:
    """Look whether the last chunk of each job would have ended within the grace."""
    if grace is None:
        return
    may_take = working_seconds(grace)
    for job in jobs:
        took = chunk_seconds.get(job.name)
        if took is None or took < may_take:
            continue
        yield Finding(
            check="chunk-longer-than-grace",
            level=Level.FAIL,
            subject=f"job {job.name}",
            problem=f"Its last chunk took {took:.1f} s; of the grace of {grace:g} s, {may_take:g} s may be worked.",
            danger="Each deploy that meets such a chunk cuts or kills it, and it is done again from its first item.",
            mend=(
                f"Make chunks smaller (chunk_size is {job.options.chunk_size} now), or have the platform wait longer "
                f"and say so in {VARIABLE}."
            ),
        )


def stuck_findings(jobs: Iterable[Definition], chunk_seconds: Mapping[str, float]) -> Iterator[Finding]:
    """Look whether the last chunk of a job was near to the end of its leases' renewal."""
    for job in jobs:
        took = chunk_seconds.get(job.name, 0.0)
        if took * 2 < job.options.chunk_timeout:
            continue
        yield Finding(
            check="chunk-near-its-timeout",
            level=Level.WARN,
            subject=f"job {job.name}",
            problem=f"Its last chunk took {took:.1f} s, and after {job.options.chunk_timeout:g} s it counts as stuck.",
            danger="A chunk that takes longer loses its lease and is done again, and so for ever if it always does.",
            mend="Make chunks smaller (chunk_size), or give them more time (chunk_timeout).",
        )


def place_findings(jobs: Iterable[Definition], *, crosses_processes: bool) -> Iterator[Finding]:
    """Look whether workers in other processes can import the jobs."""
    for job in jobs:
        if job.function.__module__ != "__main__" or not crosses_processes:
            continue
        yield Finding(
            check="job-in-main",
            level=Level.FAIL,
            subject=f"job {job.name}",
            problem="It is defined in __main__, the script that was started.",
            danger="In a worker __main__ is another program, so no worker knows the job and its runs wait for ever.",
            mend="Move the job into a module that both the script and the workers import.",
        )
