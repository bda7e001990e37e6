"""Reporting early: as soon as something must not be stopped, and not when the adapter's timer comes round."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from batchkit.busy import Busy
from batchkit.contrib.judoscale import adapter
from batchkit.contrib.judoscale.collectors import busy_collectors
from batchkit.errors import InvalidHook
from batchkit.hooks import FleetHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

#: How often the store is asked what has become protected on other instances.
_LOOK_SECONDS = 1.0
#: A worker tells that it is about to claim something before the store can know of it.
_LOOK_CLOSELY_SECONDS = 0.1
_CLOSELY_SECONDS = 1.0
#: How long a queue that has nothing protected left is still taken for one that has: the next slice may begin at once.
_LINGER_SECONDS = 5.0
#: The adapter's own count of a fleet takes a second, and its server need not hear more.
_PUSH_EVERY_SECONDS = 1.0


class JudoscaleHook(FleetHook):
    """
    Has Judoscale's adapter report at once when something becomes protected anywhere in the fleet, or no longer is.

    It works in the process that the adapter reports from: of several instances alike that is the first, the main
    process of its worker; and `batchkit supervise`. Edges of ordinary tasks come with the adapter's timer, as ever.

    Args:
        look_seconds: how often the store is asked, in the one process that does; what this worker itself begins is
            reported without waiting for that.
    """

    def __init__(self, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._wakes = threading.Event()
        self._ends = False
        self._thread: threading.Thread | None = None

    def begin(self, context: HookContext) -> None:
        """Begin to look, if this is the process that reports."""
        if not adapter.is_enabled():
            return
        collectors = busy_collectors()
        if not collectors:
            raise InvalidHook("call track_busy_jobs(kit) behind the adapter; until then nothing can be reported early")
        push = _push()
        if push is None:
            _logger.warning("this release of judoscale cannot report early; its timer does it")
            return
        if any(each.should_collect for each in collectors):
            counts_interruptible = all(each.counts_interruptible for each in collectors)
            watch = _Watch(context.busy, push, counts_interruptible=counts_interruptible)
            self._thread = threading.Thread(target=self._run, args=(watch,), name="batchkit-judoscale", daemon=True)
            self._thread.start()

    def changed(self, state: WorkerState) -> None:  # noqa: ARG002  the store is asked for the whole fleet
        """Look at once."""
        self._wakes.set()

    def repeated(self, state: WorkerState) -> None:
        """Do nothing: the adapter's timer repeats."""

    def end(self) -> None:
        """Stop looking."""
        self._ends = True
        self._wakes.set()

    def _run(self, watch: _Watch) -> None:
        closely_until = 0.0
        while not self._ends:
            looks_closely = time.monotonic() < closely_until
            if self._wakes.wait(_LOOK_CLOSELY_SECONDS if looks_closely else self._look_seconds):
                self._wakes.clear()
                closely_until = time.monotonic() + _CLOSELY_SECONDS
            try:
                if watch.look():
                    closely_until = 0.0
            except Exception:
                _logger.info("what became protected could not be reported early; the timer does it", exc_info=True)


@dataclass
class Edges:
    """What must not be stopped, by queue, as it was last seen; it reads no clock, so that it can be tried out."""

    linger: float
    #: until when each queue is taken for one that has something protected
    _until: dict[str, float] = field(default_factory=dict)
    _shown: frozenset[str] = frozenset()

    def seen(self, protected: Mapping[str, int], now: float) -> bool:
        """Take in what is there now; tell whether some queue has become protected, or is so no longer."""
        self._until.update({queue: now + self.linger for queue, count in protected.items() if count})
        self._until = {queue: until for queue, until in self._until.items() if until > now}
        before, self._shown = self._shown, frozenset(self._until)
        return before != self._shown


class _Watch:
    """Looks at the store, and has a report made where an edge was seen."""

    def __init__(self, busy: Callable[[], Busy], push: Callable[[], object], *, counts_interruptible: bool) -> None:
        self._busy = busy
        self._push = push
        self._counts_interruptible = counts_interruptible
        self._edges = Edges(_LINGER_SECONDS)
        self._pushed_at = 0.0

    def look(self) -> bool:
        """Look once, and tell whether a report was made; soon after another one it waits first."""
        queues = self._busy().queues
        counts = {each.queue: each.busy if self._counts_interruptible else each.protected for each in queues}
        if not self._edges.seen(counts, time.monotonic()):
            return False
        time.sleep(max(0.0, self._pushed_at + _PUSH_EVERY_SECONDS - time.monotonic()))
        self._push()
        self._pushed_at = time.monotonic()
        return True


def _push() -> Callable[[], object] | None:
    """Give what makes a report now, if the adapter can; the name that it has is not promised to anybody."""
    found = getattr(adapter.reporter(), "_report_metrics", None)
    return found if callable(found) else None
