"""The live bar on stderr; where that is no terminal, a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from batchkit.cli.showing import clock, speed

if TYPE_CHECKING:
    from typing_extensions import Self

_LINE_EVERY_SECONDS = 2.0
_RATE_WINDOW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Sight:
    """How far a run is at one moment."""

    done: int
    failed: int
    total: int | None
    total_is_estimate: bool
    rate: float | None
    chunk_size: int | None
    note: str = ""
    in_doubt: int = 0

    @property
    def passed(self) -> int:
        """How many items lie behind."""
        return self.done + self.failed + self.in_doubt

    def __str__(self) -> str:
        passed = self.passed
        total = "" if self.total is None else f"/{'~' if self.total_is_estimate else ''}{self.total:,}"
        parts = [f"{passed:,}{total} items"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.in_doubt:
            parts.append(f"{self.in_doubt:,} in doubt")
        if self.rate:
            parts.append(speed(self.rate))
            if self.total is not None:
                parts.append(f"ETA {clock(max(0, self.total - passed) / self.rate)}")
        if self.chunk_size:
            parts.append(f"chunks of {self.chunk_size:,}")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class Pace:
    """Items per second over the last few seconds, from how many were done at which moment."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, passed: int) -> None:
        """Note that *passed* items are behind us now."""
        now = time.monotonic()
        self._samples.append((now, passed))
        # One sample from before the window stays: a chunk may take longer than the window is.
        while len(self._samples) > 2 and self._samples[1][0] < now - _RATE_WINDOW_SECONDS:  # noqa: PLR2004
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """The rate; None before there are two samples."""
        samples = tuple(self._samples)
        if not samples or samples[-1][0] <= samples[0][0]:
            return None
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])


class Bar:
    """
    Shows how far a run is.

    It draws only when `show` is called, by one thread; whoever works does not call it.
    """

    def __init__(self, job: str) -> None:
        self._name = job.rpartition(".")[2]
        self._shown_at = 0.0
        self._shown = ""
        self._live = _Live(self._name) if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, sight: Sight) -> None:
        """Draw the bar anew; without a terminal, print a line if the last one was a while ago."""
        if self._live is not None:
            self._live.draw(sight)
            return
        text = str(sight)
        now = time.monotonic()
        if text != self._shown and now - self._shown_at >= _LINE_EVERY_SECONDS:
            percent = f"{100 * sight.passed / sight.total:.1f} %, " if sight.total else ""
            self.say(f"{self._name}: {percent}{text}")
            self._shown_at, self._shown = now, text

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201  it talks to a person


class _Live(Progress):
    def __init__(self, name: str) -> None:
        self._details = Text("")
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            console=Console(stderr=True),
            # Drawn by the one who looks at the run, not by a thread of its own.
            auto_refresh=False,
            # What a job prints belongs above the bar on a terminal, but into the file where stdout is one.
            redirect_stdout=sys.stdout.isatty() or sys.stdout is sys.stderr,
            expand=True,
        )
        self._task = self.add_task(name, total=None)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self._details

    def draw(self, sight: Sight) -> None:
        self._details = Text(str(sight), style="dim", no_wrap=True, overflow="ellipsis")
        # An empty source has nothing to do, which is all of it.
        total, passed = (1, 1) if sight.total == 0 else (sight.total, sight.passed)
        self.update(self._task, total=total, completed=passed)
        self.refresh()
