"""Calling hooks: each in a thread of its own, so that one which fails, hangs or is slow is nobody's trouble."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from batchkit.hooks import BusyHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

#: After so many failures in a row a hook is left alone for a while.
_FAILURES = 3
_ALONE_SECONDS = 30.0
#: How long a hook may take to answer.
PROTECT_SECONDS = 2.0
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Question:
    state: WorkerState
    answer: Callable[[bool | None], object]
    asked_at: float


class Caller:
    """
    Calls one hook.

    States that come while it is busy replace each other: it is told of the newest. What it raises is logged; after
    three failures in a row, or a call that took too long, it is left alone for half a minute, and questions to it are
    answered by "nobody knows" at once.
    """

    def __init__(self, hook: BusyHook) -> None:
        self._hook = hook
        self._name = type(hook).__name__
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._news: dict[str, WorkerState] = {}
        self._has_news = threading.Event()
        self._ends = False
        self._failures = 0
        self._alone_until = 0.0
        #: since when the present call runs
        self._calling_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"batchkit-hook-{self._name}", daemon=True)

    @property
    def can_protect(self) -> bool:
        """Whether it is worth asking."""
        return type(self._hook).protect is not BusyHook.protect

    def start(self, context: HookContext) -> None:
        """Begin to call it."""
        self._context = context
        self._thread.start()

    def tell(self, method: str, state: WorkerState) -> None:
        """Have *method* called with *state*, unless a newer one comes before that."""
        with self._lock:
            self._news[method] = state
        self._has_news.set()

    def ask(self, state: WorkerState, answer: Callable[[bool | None], object]) -> None:
        """Have the hook asked for protection, and *answer* called with what it says; None where it cannot say."""
        if self._is_alone:
            answer(None)
            return
        self._questions.put(_Question(state, answer, time.monotonic()))
        self._has_news.set()

    def ends_soon(self) -> None:
        """Let it end, without waiting for that."""
        self._ends = True
        self._has_news.set()

    def stop(self) -> None:
        """Let it end; a hook that hangs is left behind."""
        self.ends_soon()
        self._thread.join(timeout=_END_SECONDS)

    @property
    def _is_alone(self) -> bool:
        now = time.monotonic()
        since = self._calling_since
        return now < self._alone_until or (since is not None and now - since > PROTECT_SECONDS)

    def _run(self) -> None:
        self._call("begin", self._context)
        while not self._ends:
            self._has_news.wait()
            self._has_news.clear()
            self._answer_all()
            self._tell_all()
        self._call("end")

    def _answer_all(self) -> None:
        while not self._questions.empty():
            question = self._questions.get()
            is_late = time.monotonic() - question.asked_at > PROTECT_SECONDS
            granted = None if is_late or self._is_alone else self._call("protect", question.state)
            question.answer(granted if isinstance(granted, bool) else None)

    def _tell_all(self) -> None:
        for method in ("changed", "repeated", "checkpointed"):
            with self._lock:
                state = self._news.pop(method, None)
            if state is None:
                continue
            if time.monotonic() < self._alone_until:
                # Told when it is over, by the next repetition.
                continue
            self._call(method, state)
            self._answer_all()

    def _call(self, method: str, *arguments: object) -> object:
        self._calling_since = began = time.monotonic()
        try:
            result: object = getattr(self._hook, method)(*arguments)
        except (Exception, SystemExit):
            self._failures += 1
            _logger.warning("a hook failed; no run is changed by it", extra=self._extra(method), exc_info=True)
            if self._failures >= _FAILURES:
                self._leave_alone(method, "it has failed too often")
            return None
        finally:
            self._calling_since = None
        if time.monotonic() - began > PROTECT_SECONDS * 2:
            self._leave_alone(method, "it has taken too long")
        else:
            self._failures = 0
        return result

    def _leave_alone(self, method: str, why: str) -> None:
        self._alone_until = time.monotonic() + _ALONE_SECONDS
        _logger.warning("a hook is left alone for a while: %s", why, extra=self._extra(method))

    def _extra(self, method: str) -> dict[str, object]:
        return {"hook": self._name, "method": method}
