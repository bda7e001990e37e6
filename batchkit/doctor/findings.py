"""What a check finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(str, enum.Enum):
    """How bad a finding is. The order is that in which they are shown."""

    #: work is lost, done again and again, or not done at all
    FAIL = "fail"
    #: other people's tasks suffer, or work is done twice now and then
    WARN = "warn"
    #: something that could not be seen from here, or that is good to know
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One setting that is unsafe, or one check that could not be made.

    `problem`, `danger` and `mend` are whole sentences.
    """

    check: str
    level: Level
    #: whose setting it is: a job, a task, a database, a broker
    subject: str
    problem: str
    danger: str
    mend: str


def not_checked(subject: str, error: BaseException, *, level: Level = Level.WARN) -> Finding:
    """Make the finding for checks that could not be made."""
    return Finding(
        check="not-checked",
        level=level,
        subject=subject,
        problem=f"It could not be checked: {named(error)}.",
        danger="What is wrong there is not in this list.",
        mend="Mend what the error says, and ask again.",
    )


def named(error: BaseException) -> str:
    """Name an error on one line that a full stop can follow."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def listed(names: list[str], *, most: int = 5) -> str:
    """Name a few of *names*, and count the rest."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
