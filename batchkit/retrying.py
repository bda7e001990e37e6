"""Trying a chunk again by the policy that a job was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

R = TypeVar("R")


class StoppedWaiting(Exception):
    """The worker was asked to stop while it waited to try again."""


def retry_by(
    policy: Retrying,
    step: Callable[[], R],
    *,
    is_judged: Callable[[BaseException], bool],
    wait: Callable[[float], bool],
    on_retry: Callable[[BaseException, int], None],
) -> R:
    """
    Do *step* as often as *policy* says, and raise what it raised last.

    Args:
        policy: what to try again, how often, and how long to wait before; its own `before_sleep` is called as well.
        step: what to do.
        is_judged: whether an error is one for the policy; all others pass through.
        wait: waits for so many seconds; True when the worker should stop, which ends the waiting.
        on_retry: called with the error and the number of the attempt before each wait.

    Raises:
        StoppedWaiting: the worker should stop.
    """

    def sleep(seconds: float) -> None:
        if wait(seconds):
            raise StoppedWaiting

    def before_sleep(state: RetryCallState) -> None:
        if policy.before_sleep is not None:
            policy.before_sleep(state)
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            on_retry(error, state.attempt_number)

    def is_retried(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return error is not None and is_judged(error) and bool(policy.retry(state))

    return policy.copy(retry=is_retried, sleep=sleep, before_sleep=before_sleep, reraise=True)(step)
