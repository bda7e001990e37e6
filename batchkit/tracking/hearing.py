"""Hearing slices and telling hooks: the loop of a worker's main process."""

from __future__ import annotations

import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from batchkit.draining import DrainNotice
from batchkit.hooks import WorkerState
from batchkit.tracking.callers import PROTECT_SECONDS, Caller
from batchkit.tracking.listening import ListeningSocket
from batchkit.tracking.overtime import Overtime
from batchkit.tracking.standing import SliceSeen, Standing, is_edge

_logger = logging.getLogger("batchkit")

#: How often the state is looked at though nobody has told of anything: a chunk may take longer than was expected.
_TICK_SECONDS = 0.2
_CHECKPOINTED_EVERY_SECONDS = 1.0


@dataclass
class _Link:
    """A slice's connection, and what of a line has come already."""

    connection: socket.socket
    seen: SliceSeen = field(default_factory=SliceSeen)
    received: bytes = b""
    #: the callers whose answers are awaited, and what has been answered
    awaited: int = 0
    question: int = 0
    answers: list[bool | None] = field(default_factory=list)
    answer_until: float | None = None


class Hearing:
    """Hears slices and tells hooks, in one thread."""

    def __init__(
        self,
        listening: ListeningSocket,
        callers: Sequence[Caller],
        standing: Standing,
        *,
        is_stopping: Callable[[], bool],
        overtime: Overtime,
        repeat: float,
        ends: threading.Event,
    ) -> None:
        self._listening = listening
        self._callers = callers
        self._standing = standing
        self._is_stopping = is_stopping
        self._overtime = overtime
        self._repeat = repeat
        self._ends = ends
        self._selector = selectors.DefaultSelector()
        self._links: dict[int, _Link] = {}
        self._notice = DrainNotice()
        self._shown: WorkerState | None = None
        self._repeats_at = 0.0
        self._moved = False
        self._checkpointed_at = 0.0
        self._lock = threading.Lock()
        self._answered: list[tuple[_Link, int, bool | None]] = []

    def run(self) -> None:
        """Work until the tracker ends."""
        self._selector.register(self._listening.server, selectors.EVENT_READ)
        self._selector.register(self._listening.reader, selectors.EVENT_READ)
        try:
            while not self._ends.is_set():
                try:
                    self._turn()
                except Exception:
                    _logger.exception("the tracking of this worker has failed; it goes on")
                    self._ends.wait(_TICK_SECONDS)
        finally:
            for caller in self._callers:
                caller.ends_soon()
            for caller in self._callers:
                caller.stop()
            self._selector.close()
            for link in self._links.values():
                link.connection.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.fileobj is self._listening.server:
                self._accept()
            elif key.fileobj is self._listening.reader:
                with suppress(BlockingIOError):
                    self._listening.reader.recv(4096)
            else:
                self._hear(key.fd)
        self._take_answers()
        self._tell()

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listening.server.accept()
            connection.settimeout(0)
            link = _Link(connection)
            self._links[connection.fileno()] = link
            self._standing.slices[connection.fileno()] = link.seen
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, number: int) -> None:
        link = self._links[number]
        try:
            part = link.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._forget(number)
            return
        *lines, link.received = (link.received + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._moved |= self._standing.hear(link.seen, message, time.monotonic())
            if "asks" in message:
                link.question = message["asks"]
                self._ask(link)

    def _forget(self, number: int) -> None:
        link = self._links.pop(number)
        del self._standing.slices[number]
        self._selector.unregister(link.connection)
        link.connection.close()

    # Asking for protection

    def _ask(self, link: _Link) -> None:
        now = time.monotonic()
        asked = [caller for caller in self._callers if caller.can_protect]
        link.awaited, link.answers = len(asked), []
        link.answer_until = now + PROTECT_SECONDS
        if self._overtime.is_over(now):
            link.answers.append(False)
            self._reply(link)
            return
        state = self._state(now)
        for caller in asked:
            caller.ask(state, partial(self._note_answer, link, link.question))
        if not asked:
            self._reply(link)

    def _note_answer(self, link: _Link, question: int, granted: bool | None) -> None:  # noqa: FBT001  an answer
        with self._lock:
            self._answered.append((link, question, granted))
        self._listening.wake()

    def _take_answers(self) -> None:
        with self._lock:
            answered, self._answered = self._answered, []
        for link, question, granted in answered:
            if question == link.question:
                link.answers.append(granted)
        now = time.monotonic()
        for link in list(self._links.values()):
            if link.answer_until is None:
                continue
            if len(link.answers) >= link.awaited or False in link.answers or now > link.answer_until:
                self._reply(link)

    def _reply(self, link: _Link) -> None:
        link.answer_until = None
        granted = None
        if False in link.answers:
            granted = False
            link.seen.is_asking = False
        elif link.awaited and link.answers == [True] * link.awaited:
            granted = True
        link.seen.is_granted = granted is not False
        with suppress(OSError):
            link.connection.send(json.dumps({"asked": link.question, "granted": granted}).encode() + b"\n")

    # Telling hooks

    def _tell(self) -> None:
        now = time.monotonic()
        state = self._state(now)
        self._overtime.note(now, is_protected=state.is_protected)
        if is_edge(self._shown, state):
            self._tell_all("changed", state)
            self._shown = state
        elif now >= self._repeats_at:
            self._tell_all("repeated", state)
        if now >= self._repeats_at:
            self._repeats_at = now + self._repeat
        if self._moved and now - self._checkpointed_at >= _CHECKPOINTED_EVERY_SECONDS:
            self._moved, self._checkpointed_at = False, now
            self._tell_all("checkpointed", state)

    def _state(self, now: float) -> WorkerState:
        return self._standing.state(now, is_draining=self._notice.is_there, is_stopping=self._is_stopping())

    def _tell_all(self, method: str, state: WorkerState) -> None:
        for caller in self._callers:
            caller.tell(method, state)
