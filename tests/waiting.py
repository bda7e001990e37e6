"""Wait for what happens elsewhere. No test sleeps in any other way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.02
# Those who wait for long ask less often: most ask a database, and take the processors from what they wait for.
_LONGEST_POLL_SECONDS = 0.1
_SHARE_OF_WAITED = 0.05


def eventually(condition: Callable[[], T], *, within: float = 30.0, message: str | Callable[[], str] = "") -> T:
    """
    Call *condition* until what it gives is true, and give that.

    *within* is in seconds. *message* says what was waited for; a function of it is called only on failure, so that it
    can tell what was there instead.

    Raises:
        AssertionError: the time is up.
    """
    began = time.monotonic()
    deadline = began + within
    while True:
        # Read the clock first: a condition that is true at last, but slow to say so, is true.
        late = time.monotonic() >= deadline
        result = condition()
        if result:
            return result
        if late:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {within:g} s: {text or condition}")
        waited = time.monotonic() - began
        time.sleep(min(max(_POLL_SECONDS, waited * _SHARE_OF_WAITED), _LONGEST_POLL_SECONDS))
