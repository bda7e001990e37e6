"""Asking over HTTP, as probes and autoscalers do."""

from __future__ import annotations

import http.client
import json
from typing import Any

from tests.waiting import eventually

_WITHIN_SECONDS = 20


def ask(port: int, path: str, *, method: str = "GET") -> tuple[int, Any]:
    """Give the status and what the JSON says; status 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WITHIN_SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    except (ConnectionError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    assert "application/json" == response.getheader("Content-Type")
    assert method == "HEAD" or str(len(body)) == response.getheader("Content-Length")
    return response.status, json.loads(body) if body else None


def served(port: int, path: str) -> Any:
    """Give what the JSON says once there is an answer: a database that takes long is told as a 503."""
    found = eventually(lambda: [body for status, body in [ask(port, path)] if status == 200], within=60, message=path)
    return found[0]
