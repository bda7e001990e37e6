"""A worker of RQ's that does what the stock one cannot: it sweeps, tells busy hooks, and can be drained."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from rq import Worker as StockWorker
from rq.worker import WorkerStatus

from batchkit.delivery import Kit
from batchkit.draining import DrainNotice
from batchkit.errors import InvalidQueue
from batchkit.queues.sweeper import Sweeper
from batchkit.tracking import WorkerKind

APP_VARIABLE = "BATCHKIT_APP"
_LOOK_SECONDS = 0.2


class Worker(StockWorker):  # type: ignore[misc]
    """
    `rq worker -w batchkit.queues.rq.Worker`, with BATCHKIT_APP=module:kit to say where the kit is.

    Beside what RQ's own worker does, its main process

    - sweeps every few seconds, so that `batchkit supervise` is not needed;
    - calls the kit's busy hooks, and says in the store that it is there, so that `kit.busy()` counts it while idle;
    - takes no job while its instance is being drained (`batchkit drain`).

    Raises:
        InvalidQueue: there is no kit where BATCHKIT_APP says.
    """

    def work(self, *args: Any, **kwargs: Any) -> bool:  # noqa: ANN401  RQ's arguments, which differ by its versions
        """Work as RQ does."""
        kit = _kit_of(os.environ.get(APP_VARIABLE, ""))
        self._notice = DrainNotice()
        tracker, sweeper = kit.tracker(), Sweeper(kit.recover)
        kind = WorkerKind("rq", tuple(sorted(self.queue_names())), 1)
        tracker.start(kind, is_stopping=lambda: bool(self._stop_requested))
        sweeper.start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            sweeper.stop()
            tracker.stop()

    def check_for_suspension(self, burst: bool) -> None:  # noqa: FBT001  RQ calls it so
        """Wait while RQ is suspended, and while the instance is being drained."""
        super().check_for_suspension(burst)
        while self._notice.is_there and not self._stop_requested and not burst:
            self.set_state(WorkerStatus.SUSPENDED)
            self.heartbeat()
            time.sleep(_LOOK_SECONDS)


def _kit_of(spec: str) -> Kit:
    name, _, path = spec.partition(":")
    if not name or not path:
        raise InvalidQueue(f"this worker needs to know the kit: set {APP_VARIABLE}=module:kit; it is {spec!r} now")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = importlib.import_module(name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise InvalidQueue(f"{APP_VARIABLE}={spec}: {name} has no {path!r}; name the kit that is built there")
        found = getattr(found, attribute)
    if not hasattr(found, "tracker"):
        raise InvalidQueue(f"{APP_VARIABLE}={spec}: {path!r} is no BatchKit but a {type(found).__name__}")
    kit: Kit = found
    return kit
