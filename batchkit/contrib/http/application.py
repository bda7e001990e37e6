"""The WSGI application: which path gives what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from batchkit import BatchKit
from batchkit.busy import Busy, busy_facts, queue_facts
from batchkit.contrib.http.reading import CachedReading, NotRead

if TYPE_CHECKING:
    # It is a stub for type checkers up to Python 3.10.
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_QUEUES = "/v1/queues/"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether all is well, and what is known of it."""

    is_well: bool
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    facts: dict[str, object]


class BusyApp:
    """
    Answers in JSON, to GET and HEAD.

    | path | answer |
    |---|---|
    | /v1/busy | what `batchkit busy --json` prints |
    | /v1/queues/NAME | one queue, flat: {"wanted": 43, ...} |
    | /healthz, /readyz | 200 or 503 |

    Where the store cannot be read the answer is 503, and 404 for a queue that nobody knows: an autoscaler that is told
    a wrong 0 stops all workers, one that is told an error leaves them as they are.

    Args:
        reading: reads the store.
        queues: names of queues that are known though nothing be in them; those of the app's jobs are anyway.
        health: tells whether this process should go on; by default that it does.
        readiness: tells whether it does what it is for; by default whether the store can be read.
    """

    def __init__(
        self,
        reading: CachedReading,
        *,
        queues: Sequence[str] = (),
        health: Callable[[], Health] | None = None,
        readiness: Callable[[], Health] | None = None,
    ) -> None:
        self._reading = reading
        self._queues = tuple(queues)
        self._health = health or _serves
        self._readiness = readiness or self._can_read

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method = str(environ["REQUEST_METHOD"])
        answer = self._answered(method, _path(environ))
        body = json.dumps(answer.facts, allow_nan=False).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if method == "HEAD" else [body]

    def _answered(self, method: str, path: str) -> _Answer:
        if method not in {"GET", "HEAD"}:
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not for {path}; ask with GET")
        if path == "/healthz":
            return _of_health(self._health())
        if path == "/readyz":
            return _of_health(self._readiness())
        if path == "/v1/busy":
            return self._read(self._busy)
        if path.startswith(_QUEUES) and path != _QUEUES:
            return self._read(lambda busy: self._queue(busy, path.removeprefix(_QUEUES)))
        return _problem(
            HTTPStatus.NOT_FOUND, f"there is no {path}; ask for /v1/busy, {_QUEUES}NAME, /healthz or /readyz"
        )

    def _read(self, answered: Callable[[Busy], _Answer]) -> _Answer:
        try:
            return answered(self._reading.get())
        except NotRead as error:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def _busy(self, busy: Busy) -> _Answer:
        empty = {name: queue_facts(busy.queue(name)) for name in self._queues}
        facts = busy_facts(busy)
        return _Answer(HTTPStatus.OK, {**facts, "queues": {**empty, **_by_name(busy)}})

    def _queue(self, busy: Busy, name: str) -> _Answer:
        known = sorted({*self._queues, *_by_name(busy)})
        if name not in known:
            return _problem(
                HTTPStatus.NOT_FOUND,
                f"nothing is known of a queue {name!r}; known are {', '.join(known) or 'none'}. Where it is one that "
                f"only some runs go to, name it: queues=[{name!r}], or `batchkit serve-busy --queue {name}`",
            )
        return _Answer(HTTPStatus.OK, queue_facts(busy.queue(name)))

    def _can_read(self) -> Health:
        try:
            self._reading.get()
        except NotRead as error:
            return Health(is_well=False, facts={"error": str(error)})
        return Health(is_well=True)


def busy_app(kit: BatchKit, *, queues: Sequence[str] = ()) -> BusyApp:
    """
    Make a WSGI application that tells who is busy, to be mounted in your own.

    Args:
        kit: whose workers and queues it is about.
        queues: names of queues that are known though nothing be in them; those of the app's jobs are anyway.
    """
    return BusyApp(CachedReading(kit.busy), queues=queues)


def _path(environ: WSGIEnvironment) -> str:
    # WSGI gives the bytes of a path as characters of latin-1.
    return str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")


def _by_name(busy: Busy) -> dict[str, dict[str, object]]:
    return {each.queue: queue_facts(each) for each in busy.queues}


def _of_health(health: Health) -> _Answer:
    status = HTTPStatus.OK if health.is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return _Answer(status, {"well": health.is_well, **health.facts})


def _problem(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, {"error": text})


def _serves() -> Health:
    return Health(is_well=True)
