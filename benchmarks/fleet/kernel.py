"""Virtual time: processes that sleep and wait, locks that are waited for in turn, and processors that are shared."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

R = TypeVar("R")

#: What who waits for a lock is given.
_HAS_COME, _TOO_LATE = "has come", "too late"

#: What a process waits for: seconds, or a signal, whose value it is given.
Wait: TypeAlias = "float | Signal"
#: A step of a process that takes virtual time.
Steps: TypeAlias = Generator[Wait, object, R]


class Interrupted(Exception):
    """Raised in a process by whoever breaks it off."""


class Simulation:
    """The virtual clock and what happens by it, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), happens))

    def begin(self, steps: Steps[object]) -> Process:
        """Begin a process, at this moment and not before what called."""
        process = Process(self, steps)
        self.after(0.0, process.advance)
        return process

    def run(self, *, until: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until a moment, or until *is_over*."""
        while self._due and self._due[0][0] <= until and not is_over():
            self.now, _, happens = heapq.heappop(self._due)
            happens()
        if not is_over():
            self.now = max(self.now, until)


class Process:
    """One process: it goes on when what it waits for has come."""

    def __init__(self, simulation: Simulation, steps: Steps[object]) -> None:
        self._simulation = simulation
        self._steps = steps
        #: which wait is the present one; what comes for an earlier one comes too late
        self._turn = 0
        self.has_ended = False
        self.ended = Signal()

    def advance(self, value: object = None) -> None:
        """Let it go on until it waits again."""
        self._go(lambda: self._steps.send(value))

    def interrupt(self) -> None:
        """Break off what it waits for."""
        if not self.has_ended:
            self._go(lambda: self._steps.throw(Interrupted))

    def kill(self) -> None:
        """End it where it stands; what it holds is let go."""
        if not self.has_ended:
            self._turn += 1
            self._steps.close()
            self._end()

    def _go(self, step: Callable[[], Wait]) -> None:
        self._turn += 1
        try:
            wait = step()
        except StopIteration:
            self._end()
            return
        turn = self._turn

        def wake(value: object = None) -> None:
            if turn == self._turn:
                self.advance(value)

        if isinstance(wait, Signal):
            wait.when_given(wake)
        else:
            self._simulation.after(wait, wake)

    def _end(self) -> None:
        self.has_ended = True
        self.ended.give(None)


class Signal:
    """Something that happens once; who waits for it is told."""

    def __init__(self) -> None:
        self.is_given = False
        self._value: object = None
        self._waiting: list[Callable[[object], None]] = []

    def when_given(self, happens: Callable[[object], None]) -> None:
        """Call *happens* with its value, at once where it is given already."""
        if self.is_given:
            happens(self._value)
        else:
            self._waiting.append(happens)

    def give(self, value: object) -> None:
        """Let it happen; a second time changes nothing."""
        if self.is_given:
            return
        self.is_given, self._value = True, value
        waiting, self._waiting = self._waiting, []
        for happens in waiting:
            happens(value)

    def abandon(self) -> None:
        """Let it count as given, though nobody waits for it any more."""
        self.is_given = True
        self._waiting = []


class LockTimeout(Exception):
    """A lock was waited for longer than is allowed."""


class Lock:
    """A row's lock: who waits longest has it next."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._is_held = False
        self._waiting: deque[Signal] = deque()

    def acquire(self, *, timeout: float) -> Steps[None]:
        """
        Take it.

        Raises:
            LockTimeout: it was not to be had in time.
        """
        if not self._is_held:
            self._is_held = True
            return
        turn = Signal()
        self._waiting.append(turn)
        self._simulation.after(timeout, lambda: turn.give(_TOO_LATE))
        try:
            given = yield turn
        except BaseException:
            turn.abandon()
            raise
        if given is _TOO_LATE:
            raise LockTimeout

    def release(self) -> None:
        """Let it go to the next one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.is_given:
                turn.give(_HAS_COME)
                return
        self._is_held = False


class Processors:
    """
    Processors that all who want them share evenly, as an operating system does: each has at most one.

    *slowness* makes all that they do take so many times as long.
    """

    def __init__(self, simulation: Simulation, *, count: float) -> None:
        self._simulation = simulation
        self._count = count
        self.slowness = 1.0
        #: work that each of those who share has been given since the beginning
        self._given = 0.0
        self._at = 0.0
        self._order = itertools.count()
        self._sharing: list[tuple[float, int, Signal]] = []
        self._turn = 0
        #: processor seconds that were spent
        self.spent = 0.0

    @property
    def busy(self) -> int:
        """How many want one now."""
        return len(self._sharing)

    def slow_down(self, slowness: float) -> None:
        """Change how long everything takes."""
        self._pass()
        self.slowness = slowness
        self._plan()

    def work(self, seconds: float) -> Signal:
        """Ask for *seconds* of one processor; give what tells of their end."""
        self._pass()
        done = Signal()
        self.spent += seconds
        heapq.heappush(self._sharing, (self._given + seconds, next(self._order), done))
        self._plan()
        return done

    @property
    def _rate(self) -> float:
        return min(1.0, self._count / max(1, len(self._sharing))) / self.slowness

    def _pass(self) -> None:
        self._given += (self._simulation.now - self._at) * self._rate
        self._at = self._simulation.now

    def _plan(self) -> None:
        self._turn += 1
        if not self._sharing:
            return
        turn = self._turn

        def finish() -> None:
            if turn == self._turn:
                self._finish()

        self._simulation.after(max(0.0, self._sharing[0][0] - self._given) / self._rate, finish)

    def _finish(self) -> None:
        self._pass()
        done = []
        while self._sharing and self._sharing[0][0] <= self._given + 1e-12:
            done.append(heapq.heappop(self._sharing)[2])
        self._plan()
        for each in done:
            each.give(None)
