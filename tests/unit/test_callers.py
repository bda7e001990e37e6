"""Hooks are called in threads of their own: what one does is nobody else's trouble."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from batchkit import BatchKit
from batchkit.busy import summed_up
from batchkit.errors import InvalidHook
from batchkit.hooks import BusyHook, HookContext, RunHook, WorkerState
from batchkit.tracking import callers
from batchkit.tracking.callers import Caller
from tests.unit.test_busy import NOW
from tests.waiting import eventually

CONTEXT = HookContext(
    worker="pod-1:1",
    instance="pod-1",
    kind="celery",
    busy=lambda: summed_up(NOW, queues=[], waiting=[], slices=[], workers=[]),
    max_protect=None,
    repeat_seconds=10.0,
)


def state(number: int, *, protected: int = 0) -> WorkerState:
    return WorkerState("pod-1:1", "pod-1", protected, 0, None, is_draining=False, sequence=number)


class Told(BusyHook):
    """Keeps what it is told, and does what the test wants."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, int]] = []
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._error: Exception | None = None
        self._answer: bool | None = True

    def protect(self, state: WorkerState) -> bool | None:
        """Answer."""
        self._note("protect", state)
        return self._answer

    def changed(self, state: WorkerState) -> None:
        """Note it."""
        self._note("changed", state)

    def _note(self, method: str, state: WorkerState) -> None:
        self._calls.append((method, state.sequence))
        assert self._goes_on.wait(20)
        if self._error is not None:
            raise self._error


@pytest.fixture
def told() -> Told:
    """Give a hook."""
    return Told()


@pytest.fixture
def caller(told: Told) -> Iterator[Caller]:
    """Give what calls it."""
    made = Caller(told)
    made.start(CONTEXT)
    yield made
    told._goes_on.set()  # noqa: SLF001  it is the test's own
    made.stop()


def calls(told: Told) -> list[tuple[str, int]]:
    return told._calls  # noqa: SLF001  it is the test's own


def ask(caller: Caller, number: int) -> list[bool | None]:
    answers: list[bool | None] = []
    caller.ask(state(number), answers.append)
    return answers


def test_states_that_come_while_a_hook_is_busy_replace_each_other(told: Told, caller: Caller):
    told._goes_on.clear()  # noqa: SLF001
    caller.tell("changed", state(1))
    eventually(lambda: calls(told), message="it is not called")
    for number in range(2, 50):
        caller.tell("changed", state(number))
    told._goes_on.set()  # noqa: SLF001
    eventually(lambda: len(calls(told)) > 1, message="it is not called again")
    assert [("changed", 1), ("changed", 49)] == calls(told)


@pytest.mark.parametrize("answer", [True, False, None])
def test_a_question_is_answered_as_the_hook_says(told: Told, caller: Caller, answer: bool | None):
    told._answer = answer  # noqa: SLF001
    answers = ask(caller, 1)
    eventually(lambda: answers, message="no answer")
    assert [answer] == answers


def test_a_hook_that_fails_again_and_again_is_left_alone_and_nobody_knows_then(told: Told, caller: Caller):
    told._error = OSError("no platform")  # noqa: SLF001
    for number in range(3):
        answers = ask(caller, number)
        eventually(lambda answers=answers: answers, message="no answer")  # type: ignore[misc]
        assert [None] == answers
    assert 3 == len(calls(told))
    eventually(lambda: ask(caller, 9) == [None], message="it is asked still")
    assert 3 == len(calls(told)), "it was not left alone"


def test_a_hook_that_is_left_alone_is_tried_again_later(told: Told, caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callers, "_ALONE_SECONDS", 0.05)
    told._error = OSError("no platform")  # noqa: SLF001
    for number in range(3):
        caller.tell("changed", state(number))
        eventually(lambda number=number: len(calls(told)) > number, message="it is not called")  # type: ignore[misc]
    told._error = None  # noqa: SLF001

    def is_told_again() -> bool:
        caller.tell("changed", state(77))
        return ("changed", 77) in calls(told)

    eventually(is_told_again, message="it is left alone for ever")


def test_nobody_waits_for_a_hook_that_hangs(told: Told, caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callers, "PROTECT_SECONDS", 0.05)
    told._goes_on.clear()  # noqa: SLF001
    caller.tell("changed", state(1))
    eventually(lambda: calls(told), message="it is not called")
    eventually(lambda: ask(caller, 2) == [None], message="a question waits for it")


def test_a_hook_without_an_answer_is_not_asked():
    class Deaf(BusyHook):
        """Grants nothing."""

    assert not Caller(Deaf()).can_protect
    assert Caller(Told()).can_protect


# Which hooks a kit takes


class Both(RunHook, BusyHook):
    """Is told of runs and of workers."""


class Misspelt(BusyHook):
    """Nothing calls what it has."""

    def change(self, state: WorkerState) -> None:
        """Tell somebody."""


class WithoutState(BusyHook):
    """It cannot be called."""

    def changed(self) -> None:  # type: ignore[override]
        """Tell somebody."""


class Alike:
    """Has the methods of a hook, and one more."""

    def begin(self, context: HookContext) -> None:
        """Do nothing."""

    def protect(self, state: WorkerState) -> bool | None:
        """Do nothing."""

    def changed(self, state: WorkerState) -> None:
        """Do nothing."""

    def repeated(self, state: WorkerState) -> None:
        """Do nothing."""

    def checkpointed(self, state: WorkerState) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def other(self) -> None:
        """Do something else."""


@pytest.mark.parametrize("hook", [Both(), Alike(), Told()])
def test_a_kit_takes_hooks_of_each_kind(sqlite_url: str, hook: Any):
    BatchKit(sqlite_url, hooks=[hook])


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (Misspelt(), r"nothing calls Misspelt\.change: the methods of a hook are begin, protect, changed"),
        (WithoutState(), r"WithoutState\.changed cannot be called with a state"),
        (Told, r"give Told\(\)"),
    ],
)
def test_what_would_never_be_called_is_refused(sqlite_url: str, hook: Any, problem: str):
    with pytest.raises(InvalidHook, match=problem):
        BatchKit(sqlite_url, hooks=[hook])
