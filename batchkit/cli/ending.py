"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

from batchkit.run import Run
from batchkit.states import RunState

DONE = 0
FAILED = 1
USAGE = 2
#: EX_TEMPFAIL of sysexits.h: stopped before its end, and it can go on
INTERRUPTED = 75


class UsageProblem(Exception):
    """Raised when a command cannot do what it was told; its text is one line for a person."""


def exit_code(run: Run) -> int:
    """Give the exit code that tells how a run stands."""
    if run.state is RunState.SUCCEEDED:
        return DONE
    return FAILED if run.has_ended else INTERRUPTED


def one_line(error: BaseException) -> str:
    """Put the text of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
