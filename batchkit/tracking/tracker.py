"""The main process of a worker: it listens to its slices, tells hooks, and says that the worker is there."""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from batchkit.busy import Busy
from batchkit.draining import DrainNotice
from batchkit.errors import DrainImpossible
from batchkit.forking import ForkGuard
from batchkit.hooks import BusyHook, HookContext, WorkerState
from batchkit.instance import instance_name, worker_name
from batchkit.store import ATTEND_EVERY_SECONDS, Fleet
from batchkit.tracking.callers import PROTECT_SECONDS, Caller
from batchkit.tracking.duty import Breaks
from batchkit.tracking.patience import Patience
from batchkit.tracking.standing import SliceSeen, Standing, is_edge
from batchkit.tracking.tie import VARIABLE

_logger = logging.getLogger("batchkit")

#: How often the state is looked at though nobody has told of anything: a chunk may take longer than was expected.
_TICK_SECONDS = 0.5
_CHECKPOINTED_EVERY_SECONDS = 1.0
#: How long a worker stays busy, or protected, to the outside when it is no longer.
LINGER_SECONDS = 5.0
_STOP_SECONDS = 2.0
#: A drain that was asked for through the store lasts as long as a platform may take to stop the worker.
_DRAIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What kind of worker tracks: celery, rq or local; its queues, None for all; and its slots for slices."""

    name: str
    queues: tuple[str, ...] | None
    slots: int


#: What `batchkit supervise` is: it works nothing, so it is not among the workers of the fleet.
SUPERVISOR = WorkerKind("supervisor", (), 0)


class Tracker:
    """
    Tracks one worker, in its main process.

    `listen` comes before the worker starts its children, which find the socket in their environment; `start` after
    that. Nothing here changes what becomes of a run.
    """

    def __init__(
        self,
        fleet: Fleet,
        hooks: Sequence[BusyHook],
        *,
        busy: Callable[[], Busy] | None = None,
        max_protect: float | None = None,
        linger: float = LINGER_SECONDS,
        repeat: float = ATTEND_EVERY_SECONDS,
    ) -> None:
        self._fleet = fleet
        self._hooks = hooks
        self._busy = busy or fleet.busy
        self._max_protect = max_protect
        self._linger = linger
        self._repeat = repeat
        self._socket: _Socket | None = None
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def listen(self) -> None:
        """Let slices find this process, if there is anybody to tell of them."""
        if not self._hooks or self._socket is not None:
            return
        try:
            self._socket = _Socket()
        except OSError as error:
            # Nothing may fail for that, neither sweeps nor work.
            _logger.warning(
                "busy hooks are not called: slices cannot find this process (%s); "
                "set TMPDIR to a folder that can be written to, and whose name is short",
                error,
            )
            return
        os.environ[VARIABLE] = str(self._socket.path)

    def start(self, kind: WorkerKind, *, is_stopping: Callable[[], bool]) -> None:
        """Begin to track a worker; *is_stopping* tells whether it was asked to stop, and costs next to nothing."""
        name, instance = worker_name(), instance_name()
        if kind is not SUPERVISOR:
            attendance = _Attendance(self._fleet, kind, name=name, instance=instance, ends=self._ends)
            self._threads.append(threading.Thread(target=attendance.run, name="batchkit-attendance", daemon=True))
        self.listen()
        if self._socket is not None:
            context = HookContext(
                worker=name,
                instance=instance,
                kind=kind.name,
                busy=_unforked(self._busy),
                max_protect=self._max_protect,
                repeat_seconds=self._repeat,
            )
            callers = [Caller(hook) for hook in self._hooks]
            for caller in callers:
                caller.start(context)
            loop = _Loop(
                self._socket,
                callers,
                Standing(name, instance, self._linger),
                is_stopping=is_stopping,
                patience=Patience(Breaks(self._max_protect)),
                repeat=self._repeat,
                ends=self._ends,
            )
            self._threads.append(threading.Thread(target=loop.run, name="batchkit-tracker", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End: tell hooks, and say in the store that the worker is gone."""
        self._ends.set()
        if self._socket is not None:
            self._socket.wake()
        for thread in self._threads:
            thread.join(timeout=_STOP_SECONDS)
        if self._socket is not None:
            self._socket.close()
            if os.environ.get(VARIABLE) == str(self._socket.path):
                del os.environ[VARIABLE]
            self._socket = None


def _unforked(busy: Callable[[], Busy]) -> Callable[[], Busy]:
    """Let no child be forked while a hook reads: the child would inherit the locks that reading takes."""
    guard = ForkGuard()

    def read() -> Busy:
        with guard.at_work():
            return busy()

    return read


class _Socket:
    """The socket that slices find, and a way to wake up who waits at it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="batchkit-")
        self.path = Path(self._folder) / "main"
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.server.bind(str(self.path))
            self.server.listen(128)
        except OSError:
            self.server.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.server.settimeout(0)
        self.reader, self._writer = socket.socketpair()
        self.reader.settimeout(0)
        self._writer.settimeout(0)
        self._process = os.getpid()
        # A child that kept it open would take connections that nobody answers, once this process is dead.
        own = weakref.ref(self)

        def forget() -> None:
            listening = own()
            if listening is not None:
                listening.forget()

        os.register_at_fork(after_in_child=forget)

    def wake(self) -> None:
        """Wake up who waits."""
        with suppress(OSError):
            self._writer.send(b"!")

    def forget(self) -> None:
        """Close what a child has inherited."""
        for each in (self.server, self.reader, self._writer):
            with suppress(OSError):
                each.close()

    def close(self) -> None:
        """Close it, and remove its folder."""
        self.forget()
        if os.getpid() == self._process:
            shutil.rmtree(self._folder, ignore_errors=True)


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


class _Loop:
    """Hears slices and tells hooks, in one thread."""

    def __init__(
        self,
        listening: _Socket,
        callers: Sequence[Caller],
        standing: Standing,
        *,
        is_stopping: Callable[[], bool],
        patience: Patience,
        repeat: float,
        ends: threading.Event,
    ) -> None:
        self._listening = listening
        self._callers = callers
        self._standing = standing
        self._is_stopping = is_stopping
        self._patience = patience
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
        if self._patience.is_over(now):
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
        self._patience.note(now, is_protected=state.is_protected)
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


class _Attendance:
    """Says in the store, every few seconds, that the worker is there, and learns there that it is to be drained."""

    def __init__(self, fleet: Fleet, kind: WorkerKind, *, name: str, instance: str, ends: threading.Event) -> None:
        self._fleet = fleet
        self._kind = kind
        self._name = name
        self._instance = instance
        self._ends = ends
        self._is_new = True
        self._guard = ForkGuard()
        self._notice = DrainNotice()
        #: whether the notice was put up for a drain that is written in the store
        self._is_drained = False

    def run(self) -> None:
        """Attend until the tracker ends, and leave."""
        while True:
            with self._guard.at_work():
                self._attend()
            if self._ends.wait(ATTEND_EVERY_SECONDS):
                break
        try:
            self._fleet.leave(self._name)
        except Exception:
            _logger.info("a worker could not say that it leaves; it counts as there for a while", exc_info=True)

    def _attend(self) -> None:
        kind = self._kind
        try:
            is_to_drain = self._fleet.attend(
                self._name,
                instance=self._instance,
                kind=kind.name,
                queues=kind.queues,
                slots=kind.slots,
                is_new=self._is_new,
            )
            self._is_new = False
        except Exception:
            _logger.info("a worker could not say that it is there; it tries again", exc_info=True)
            return
        if is_to_drain and not self._is_drained:
            is_to_drain = self._put_up()
        elif is_to_drain and not self._notice.look():
            # It has ended, or was called off here.
            is_to_drain = not self._is_undrained()
        self._is_drained = is_to_drain

    def _put_up(self) -> bool:
        try:
            self._notice.put_up(seconds=_DRAIN_SECONDS)
        except DrainImpossible as error:
            _logger.warning("a drain that was asked for in the store cannot be told here: %s", error)
            return False
        return True

    def _is_undrained(self) -> bool:
        try:
            self._fleet.undrain(self._name)
        except Exception:
            _logger.info("a worker could not say that it takes work again; it tries again", exc_info=True)
            return False
        return True
