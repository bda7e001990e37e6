"""What a crash test raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchkit.errors import BatchkitError

_SHOWN_TRIES = 5


@dataclass(frozen=True, slots=True)
class FailedTry:
    """A run that was killed, went on, and ended otherwise than the undisturbed one."""

    #: where it was killed: `right before commit 3`
    killed: str
    #: in what its end differs, a line for each part of the snapshot
    differences: Sequence[str]


class CrashTestFailed(BatchkitError, AssertionError):
    """Raised when a job that is killed and goes on does not come to the same end as an undisturbed run."""

    def __init__(self, job: str, *, failed: Sequence[FailedTry], kills: int, commits: int) -> None:
        self.job = job
        self.failed = tuple(failed)
        self.kills = kills
        self.commits = commits
        times = f"was killed {kills} times and came {len(failed)} times to another end than undisturbed"
        lines = [f"job {job} {times}:"]
        for each in self.failed[:_SHOWN_TRIES]:
            lines += [f"  killed {each.killed}:", *(f"    {difference}" for difference in each.differences)]
        if len(failed) > _SHOWN_TRIES:
            lines.append(f"  and {len(failed) - _SHOWN_TRIES} more")
        lines.append(
            "What a function does outside of the chunk's transaction stays when the chunk is rolled back, and is done "
            "again: write through chunk.session, or give outside calls the idempotency key chunk.key(item). What "
            "chunk.after_commit calls, and what is kept in the process, is lost with it."
        )
        super().__init__("\n".join(lines))


class InvalidCrashTest(BatchkitError):
    """Raised when a crash test cannot be made as asked, and says nothing about the job."""
