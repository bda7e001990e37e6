"""The grace: how long a platform waits between the signal to stop and the kill."""

from __future__ import annotations

import os

from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidGrace
from batchkit.platforms import PLATFORMS, Platform

VARIABLE = "BATCHKIT_GRACE_SECONDS"

#: The part of the grace that is left for giving back and going, at least so many seconds.
_SPARE_SECONDS = 2.0
_SPARE_SHARE = 0.2


def grace_seconds(given: Duration | str | None) -> float | None:
    """
    Give the grace in seconds: *given*, a duration or the name of a platform, else BATCHKIT_GRACE_SECONDS, else None.

    It is never guessed from the platform: a chunk that is cut short too late is killed, one too early is done twice.

    Raises:
        InvalidGrace: it is no duration and no name that is known, or the platform's own cannot be told.
    """
    value = given if given is not None else os.environ.get(VARIABLE)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        return _checked(value)
    if value in PLATFORMS:
        return _of_platform(PLATFORMS[value])
    try:
        return _checked(float(value))
    except ValueError:
        raise _invalid(value) from None


def working_seconds(grace: float) -> float:
    """Give how long of a grace may be worked; what is left is for giving back what was claimed."""
    return max(0.0, grace - max(_SPARE_SECONDS, _SPARE_SHARE * grace))


def _of_platform(platform: Platform) -> float:
    if platform.grace is None:
        raise InvalidGrace(
            f"what {platform.name} gives by itself is too little to count on; set {platform.setting}, "
            f"and say the same number of seconds as grace=... or {VARIABLE}"
        )
    return platform.grace


def _checked(value: Duration) -> float:
    try:
        return seconds(value, name="grace")
    except (TypeError, ValueError):
        raise _invalid(value) from None


def _invalid(value: object) -> InvalidGrace:
    return InvalidGrace(
        f"the grace {value!r} is neither seconds, nor a timedelta, nor one of {', '.join(PLATFORMS)}; "
        f"say how long your platform waits between SIGTERM and SIGKILL, as grace=... or {VARIABLE}"
    )
