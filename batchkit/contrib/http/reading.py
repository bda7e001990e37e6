"""Reading the store for whoever asks over HTTP: not too often, and not for too long."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from batchkit.busy import Busy
from batchkit.errors import DatabaseUnavailable, InvalidDatabase, SchemaMismatch

_logger = logging.getLogger("batchkit")

#: Less than those who ask wait for an answer: the probes of the manifests wait 3 seconds.
KEEP_SECONDS = 1.0
TIMEOUT_SECONDS = 2.0

_PROBLEMS: Mapping[type[Exception], str] = {
    DatabaseUnavailable: "the database cannot be reached or used",
    SchemaMismatch: "the tables in the database are not those of this version of batchkit: run `batchkit db upgrade`",
    InvalidDatabase: "the database cannot keep batchkit's promises",
}


class NotRead(Exception):
    """Raised when the store could not be read; its text says why, and may be shown to anybody."""


@dataclass(frozen=True, slots=True)
class _Answer:
    at: float
    busy: Busy | None
    problem: str


class CachedReading:
    """
    Reads at most once in a while, however many ask.

    What was read is given for *keep* seconds, and so is a failure: a database in trouble is not asked more often. Who
    asks waits *timeout* seconds at the most; a reading that takes longer goes on for those who ask later.
    """

    def __init__(
        self, read: Callable[[], Busy], *, keep: float = KEEP_SECONDS, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self._read = read
        self._keep = keep
        self._timeout = timeout
        self._changed = threading.Condition()
        self._answer: _Answer | None = None
        self._reader: int | None = None
        self._answered_at = time.monotonic()

    @property
    def away_seconds(self) -> float:
        """How long ago the database answered last; counted from the beginning where it never has."""
        return time.monotonic() - self._answered_at

    def get(self) -> Busy:
        """
        Give what was read a moment ago, or what is read now.

        Raises:
            NotRead: the database did not answer, or not in time. It never gives an old reading for a new one.
        """
        until = time.monotonic() + self._timeout
        with self._changed:
            while not self._is_fresh(self._answer):
                self._begin()
                left = until - time.monotonic()
                if left <= 0:
                    raise NotRead(f"the database has not answered within {self._timeout:g} s")
                self._changed.wait(left)
            return _taken(self._answer)

    def _is_fresh(self, answer: _Answer | None) -> bool:
        return answer is not None and time.monotonic() - answer.at < self._keep

    def _begin(self) -> None:
        # The process, since a child that was forked in the middle of a reading has no thread that reads.
        if self._reader != os.getpid():
            self._reader = os.getpid()
            threading.Thread(target=self._read_once, name="batchkit-reading", daemon=True).start()

    def _read_once(self) -> None:
        busy: Busy | None = None
        problem = ""
        try:
            busy = self._read()
        except Exception as error:
            problem = _for_anybody(error)
            if self._answer is None or self._answer.problem != problem:
                _logger.warning("who is busy could not be read", exc_info=True)
        with self._changed:
            self._answer = _Answer(time.monotonic(), busy, problem)
            if busy is not None:
                self._answered_at = self._answer.at
            self._reader = None
            self._changed.notify_all()


def _for_anybody(error: Exception) -> str:
    """Say what is wrong to whoever asks: the texts of errors have addresses in them, and are for the log alone."""
    for kind, problem in _PROBLEMS.items():
        if isinstance(error, kind):
            return f"{problem}; the log of the process that serves this says more"
    return f"the database could not be read: {type(error).__name__}"


def _taken(answer: _Answer | None) -> Busy:
    if answer is None or answer.busy is None:
        raise NotRead("" if answer is None else answer.problem)
    return answer.busy
