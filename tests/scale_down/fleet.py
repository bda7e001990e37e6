"""A fleet of workers that is scaled down and up again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests import forks
from tests.queues.workers import QueueWorker


class Fleet:
    """Workers by their instances. One that is stopped gets SIGTERM, the grace, and SIGKILL, all its processes alike."""

    def __init__(self, kind: str, *, folder: Path, env: Mapping[str, str], grace: float) -> None:
        self._kind = kind
        self._folder = folder
        self._env = dict(env)
        self._grace = grace
        self._number = 0
        self._workers: dict[str, QueueWorker] = {}
        self._leaving: list[threading.Thread] = []
        self._lock = threading.Lock()
        #: how those that were stopped have ended
        self.ends: Counter[str] = Counter()

    @property
    def instances(self) -> list[str]:
        """The instances that are not being stopped."""
        return list(self._workers)

    def start(self) -> None:
        """Start one worker."""
        self._number += 1
        instance = f"w{self._number}"
        log = self._folder / f"{instance}.log"
        log.touch()
        env = {**os.environ, **self._env, "BATCHKIT_INSTANCE": instance}
        module, *arguments = self._command(instance)

        def begin(output: int) -> forks.Process:
            return forks.start(module, *arguments, output=output, env=env, new_session=True)

        self._workers[instance] = QueueWorker(begin, ready="", log=log)

    def stop(self, instance: str) -> None:
        """Stop one, in the background."""
        worker = self._workers.pop(instance)
        leaving = threading.Thread(target=self._stop, args=(worker,), daemon=True)
        leaving.start()
        self._leaving = [each for each in self._leaving if each.is_alive()] + [leaving]

    def bury_the_dead(self) -> None:
        """Forget those that ended by themselves, which none should."""
        for instance, worker in list(self._workers.items()):
            if not worker.is_alive:
                del self._workers[instance]
                self.ends["died by itself"] += 1
                print(worker.log(), file=sys.stderr)

    def end(self) -> None:
        """End all."""
        for leaving in self._leaving:
            leaving.join()
        for worker in self._workers.values():
            worker.end()

    def logs(self) -> str:
        """Give what those that are there wrote."""
        return "\n".join(f"--- {instance}\n{worker.log()}" for instance, worker in self._workers.items())

    def _stop(self, worker: QueueWorker) -> None:
        until = time.monotonic() + self._grace
        worker.send_all(signal.SIGTERM)
        while worker.is_alive and time.monotonic() < until:
            time.sleep(0.02)
        with self._lock:
            self.ends["killed" if worker.is_alive else "in time"] += 1
        worker.end()

    def _command(self, instance: str) -> list[str]:
        if self._kind == "rq":
            worker = ["rq.cli", "worker", "-u", self._env["TEST_BROKER"]]
            return [*worker, "-w", "batchkit.queues.rq.Worker", "default"]
        worker = ["celery", "-A", "tests.scale_down.app", "worker", "-l", "INFO", "-c", "1"]
        return [*worker, "--without-mingle", "--without-gossip", "-n", f"{instance}@%h"]
