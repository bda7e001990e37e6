"""The hook that serves from inside a worker, with the worker's own health."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from batchkit.contrib.http.application import BusyApp, Health
from batchkit.contrib.http.reading import CachedReading, NotRead
from batchkit.contrib.http.server import BusyServer
from batchkit.hooks import BusyHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

#: So many repetitions may fail to come before the main process counts as hung: a machine may be short of time.
_MISSED = 4


class BusyEndpoint(BusyHook):
    """
    Serves who is busy, and whether this worker is well, on a port of its own.

    `/healthz` is well while the main process's loop turns. A database that is away does not make a worker unwell by
    itself: to have all workers of a fleet restarted while it is away helps nobody, and takes from them what they could
    finish. `/readyz` is well from the beginning of the worker until it is drained.

    Args:
        port: where it listens; two workers on one machine need two.
        host: the address that it listens on; empty for all of this machine's.
        queues: names of queues that are known though nothing be in them; those of the app's jobs are anyway.
        max_away: for how many seconds the database may be away until `/healthz` is unwell all the same; None for ever.
            Only with it is the database asked for `/healthz`.
    """

    def __init__(self, port: int, *, host: str = "", queues: Sequence[str] = (), max_away: float | None = None) -> None:
        self._port = port
        self._host = host
        self._queues = tuple(queues)
        self._max_away = max_away
        self._server: BusyServer | None = None
        self._app: BusyApp | None = None

    @property
    def port(self) -> int | None:
        """Where it listens; None while it does not."""
        return None if self._server is None else self._server.port

    def begin(self, context: HookContext) -> None:
        """Begin to serve."""
        reading = CachedReading(context.busy)
        self._health = WorkerHealth(context, reading, max_away=self._max_away)
        self._app = BusyApp(
            reading, queues=self._queues, health=self._health.liveness, readiness=self._health.readiness
        )
        self._serve()

    def changed(self, state: WorkerState) -> None:
        """Take note of the state."""
        self._health.hear(state)

    def repeated(self, state: WorkerState) -> None:
        """Take note of the state, and try the port again where another process had it."""
        self._health.hear(state)
        self._serve()

    def end(self) -> None:
        """Serve no longer."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _serve(self) -> None:
        if self._server is not None or self._app is None:
            return
        try:
            self._server = BusyServer(self._app, port=self._port, host=self._host)
        except OSError as error:
            # As a hook's failure it is logged with this text, and tried again.
            message = (
                f"port {self._port} cannot be had ({error.strerror}), so this worker's probes fail; give each worker "
                f"of a machine a port of its own: BusyEndpoint({self._port + 1})"
            )
            raise OSError(error.errno, message) from error
        _logger.info("who is busy is served", extra={"port": self._server.port})


class WorkerHealth:
    """Whether a worker is well, by what its main process tells."""

    def __init__(self, context: HookContext, reading: CachedReading, *, max_away: float | None) -> None:
        self._worker = context.worker
        self._reading = reading
        self._max_away = max_away
        self._longest_silence = context.repeat_seconds * _MISSED
        self._lock = threading.Lock()
        self._state: WorkerState | None = None
        self._heard_at = time.monotonic()

    def hear(self, state: WorkerState) -> None:
        """Take note that the main process's loop turns, and of what it says."""
        with self._lock:
            self._state, self._heard_at = state, time.monotonic()

    def liveness(self) -> Health:
        """Tell whether the worker should go on."""
        with self._lock:
            silent = time.monotonic() - self._heard_at
        facts: dict[str, object] = {"worker": self._worker, "silent_seconds": round(silent, 1)}
        if silent > self._longest_silence:
            facts["error"] = f"the main process has said nothing for {silent:.0f} s"
            return Health(is_well=False, facts=facts)
        if self._max_away is None:
            return Health(is_well=True, facts=facts)
        return self._with_database(facts, self._max_away)

    def readiness(self) -> Health:
        """Tell whether the worker takes work."""
        with self._lock:
            state = self._state
        facts: dict[str, object] = {"worker": self._worker, "draining": state is not None and state.is_draining}
        return Health(is_well=state is not None and not state.is_draining, facts=facts)

    def _with_database(self, facts: dict[str, object], max_away: float) -> Health:
        try:
            self._reading.get()
        except NotRead as error:
            away = self._reading.away_seconds
            facts |= {"error": str(error), "database_away_seconds": round(away, 1)}
            return Health(is_well=away <= max_away, facts=facts)
        return Health(is_well=True, facts=facts)
