"""Durations, which users give as a timedelta or as seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

Duration: TypeAlias = timedelta | float


def seconds(duration: Duration, *, name: str) -> float:
    """
    Give *duration* in seconds; *name* is the option in the error.

    Raises:
        TypeError: it is neither a timedelta nor a number.
        ValueError: it is not positive.
    """
    if isinstance(duration, timedelta):
        number = duration.total_seconds()
    elif type(duration) in (int, float):
        number = float(duration)
    else:
        message = f"{name} must be a timedelta or a number of seconds, such as {name}=30: got {duration!r}"
        raise TypeError(message)
    if not 0 < number < float("inf"):
        message = f"{name} must be longer than nothing, such as {name}=30: got {duration!r}"
        raise ValueError(message)
    return number
