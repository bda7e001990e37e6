"""The simulator: constant load, reports that are old when they are read, and a platform that stops whom it may."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from batchkit.busy import Busy
from batchkit.errors import BatchkitError
from tests.scale_down import ledger
from tests.scale_down.fleet import Fleet
from tests.scale_down.platform import Rule
from tests.scale_down.work import ITEMS, Work

_SETTLE_SECONDS = 180.0


@dataclass
class Result:
    """What came of a simulation."""

    decisions: int = 0
    refusals: int = 0
    stops: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    items: int = 0
    lost: int = 0
    doubled: int = 0
    sections: int = 0
    cut: int = 0
    reports: int = 0
    false_idle: int = 0
    #: the longest time for which nobody could be stopped
    longest_refusal: float = 0.0
    #: how many seconds it took to come down to one worker; None where that was never allowed
    scaled_in_after: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled, or cut short, and no report was false."""
        return not (self.lost or self.doubled or self.cut or self.false_idle or self.problems)


@dataclass(frozen=True)
class Sample:
    """A report, and which instances it says may be stopped."""

    read_at: datetime
    protected: frozenset[str]


class Simulation:
    """One fleet under constant load."""

    def __init__(
        self,
        work: Work,
        engine: Engine,
        fleet: Fleet,
        rule: Rule,
        *,
        workers: int,
        working: float,
        chance: random.Random,
        report_every: float = 0.7,
    ) -> None:
        self._work = work
        self._engine = engine
        self._fleet = fleet
        self._rule = rule
        self._workers = workers
        self._working = working
        self._chance = chance
        self._report_every = report_every
        self._batches = 0
        self._unfinished = 0
        self._samples: deque[Sample] = deque(maxlen=100_000)
        self._report: Busy | None = None
        self._reports_at = 0.0
        self._refused_since: float | None = None
        self.result = Result()

    def run(self, *, stops: int, minutes: float) -> Result:
        """Stop workers at random until there were so many stops, or the time is over; then let all end, and count."""
        ends_at = time.monotonic() + minutes * 60
        decides_at = 0.0
        while self.result.stops < stops and time.monotonic() < ends_at:
            self._keep_up()
            if time.monotonic() >= decides_at:
                self._decide(self._workers - 1)
                decides_at = time.monotonic() + self._chance.expovariate(1 / 0.6)
            time.sleep(0.05)
        self._settle()
        self._count()
        return self.result

    def scale_in(self, *, minutes: float) -> Result:
        """Stop one worker after the other, as soon as that is allowed, until one is left; then count."""
        while not self._is_up(self._workers):
            self._keep_up()
            time.sleep(0.05)
        began = time.monotonic()
        while len(self._fleet.instances) > 1 and time.monotonic() - began < minutes * 60:
            # The same load for all that are left
            self._keep_load()
            if self._read_report():
                self._decide(len(self._fleet.instances))
            time.sleep(0.05)
        self.result.scaled_in_after = time.monotonic() - began if len(self._fleet.instances) == 1 else None
        self._settle()
        self._count()
        return self.result

    def _keep_up(self) -> None:
        self._fleet.bury_the_dead()
        while len(self._fleet.instances) < self._workers:
            self._fleet.start()
        self._keep_load()
        self._read_report()

    def _keep_load(self) -> None:
        for _ in range(self._workers + 2 - self._unfinished):
            self._batches += 1
            ledger.fill(self._engine, self._batches, ITEMS)
            self._work.start(self._batches)
            self._unfinished += 1

    def _read_report(self) -> bool:
        """Read a report, if it is time for one; say whether it was."""
        if time.monotonic() < self._reports_at:
            return False
        try:
            self._report = report = self._work.report()
        except BatchkitError as error:
            self.result.problems.append(f"no report: {error}")
            return False
        finally:
            self._reports_at = time.monotonic() + self._report_every
        protected = frozenset(each.instance for each in report.slices if not each.is_interruptible)
        self._samples.append(Sample(report.read_at, protected))
        self._unfinished = self._work.unfinished()
        return True

    def _is_up(self, workers: int) -> bool:
        """Tell whether so many workers have begun: a platform waits for a new one before it stops the next."""
        return self._report is not None and len(self._present(self._report)) >= workers

    def _present(self, report: Busy) -> list[str]:
        present = {each.instance for each in report.workers}
        return [each for each in self._fleet.instances if each in present]

    def _decide(self, at_least: int) -> None:
        if self._report is None or not self._is_up(at_least):
            return
        self.result.decisions += 1
        victim = self._rule.victim(self._report, self._present(self._report), self._chance)
        now = time.monotonic()
        if victim is None:
            self.result.refusals += 1
            self._refused_since = now if self._refused_since is None else self._refused_since
            return
        if self._refused_since is not None:
            self.result.longest_refusal = max(self.result.longest_refusal, now - self._refused_since)
            self._refused_since = None
        self._fleet.stop(victim)
        self.result.stops += 1

    def _settle(self) -> None:
        ends_at = time.monotonic() + _SETTLE_SECONDS
        while self._work.unfinished() and time.monotonic() < ends_at:
            time.sleep(0.3)

    def _count(self) -> None:
        result = self.result
        result.ends = dict(self._fleet.ends)
        result.batches = self._batches
        result.problems += self._work.problems()
        times = ledger.times(self._engine, list(range(1, self._batches + 1)))
        result.items = times.total()
        result.lost = times[0]
        result.doubled = sum(count for number, count in times.items() if number > 1)
        sections = ledger.sections(self._engine)
        result.sections = len(sections)
        result.cut = sum(each.ended_at is None for each in sections)
        result.reports = len(self._samples)
        result.false_idle = sum(self._is_false(sample, sections) for sample in self._samples)

    def _is_false(self, sample: Sample, sections: list[ledger.Section]) -> bool:
        """Tell whether a report calls free who was in the middle of what would outlast the time after a signal."""
        return any(
            each.began_at < sample.read_at
            and each.ended_at is not None
            and (each.ended_at - sample.read_at).total_seconds() > self._working
            and each.worker not in sample.protected
            for each in sections
        )
