"""What deploys, restarts and crashes do to a worker and its children."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.queues.workers import QueueWorker

_TERM, _KILL, _INT, _QUIT = signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT


@dataclass(frozen=True)
class Fault:
    """Something that is done to a worker, and whether its main process ends of it."""

    hurt: Callable[[QueueWorker], object]
    ends: bool = True


def _term_then_kill(worker: QueueWorker) -> None:
    worker.send(_TERM)
    worker.send_all(_KILL)


FAULTS = {
    "SIGTERM main": Fault(lambda worker: worker.send(_TERM)),
    "SIGTERM all": Fault(lambda worker: worker.send_all(_TERM)),
    "SIGTERM children": Fault(lambda worker: worker.send_children(_TERM), ends=False),
    "SIGKILL child": Fault(lambda worker: worker.send_children(_KILL), ends=False),
    "SIGKILL main": Fault(lambda worker: worker.send(_KILL)),
    "SIGKILL all": Fault(lambda worker: worker.send_all(_KILL)),
    "SIGTERM then SIGKILL": Fault(_term_then_kill),
    "SIGINT main": Fault(lambda worker: worker.send(_INT)),
    "SIGINT all": Fault(lambda worker: worker.send_all(_INT)),
}

#: Celery's cold shutdown; RQ knows none.
QUITS = {
    "SIGQUIT main": Fault(lambda worker: worker.send(_QUIT)),
    "SIGQUIT all": Fault(lambda worker: worker.send_all(_QUIT)),
}
