"""An agent of ECS, as far as task protection goes: a real HTTP server that answers as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/api/x/task-protection/v1/state"
_ARN = "arn:aws:ecs:eu-west-1:1:task/app/1"
_ERRORS = {
    "400": (400, "InvalidParameterException", "not so"),
    "403": (403, "AccessDeniedException", "Failed to get task role credentials"),
    "404": (404, "ResourceNotFoundException", "no such task"),
    "500": (500, "ServerException", "it broke"),
    "504": (504, "RequestCanceled", "Timed out calling ECS Task Protection API"),
}


_FAILURES = {"refuse": "DEPLOYMENT_BLOCKED", "standalone": "TASK_NOT_VALID"}


@dataclass
class Agent:
    """What it is to answer, and what it was asked."""

    uri: str = ""
    #: grant, refuse, standalone, hang, close, malformed, or a status
    answers: str = "grant"
    asked: list[dict[str, Any]] = field(default_factory=list)
    #: called with each request before it is answered
    on_asked: Callable[[dict[str, Any]], object] = lambda _: None
    ends: threading.Event = field(default_factory=threading.Event)

    def changes(self) -> list[bool]:
        """Give what the task was made, without repetitions: protected or not."""
        wanted = [each["ProtectionEnabled"] for each in self.asked]
        return [each for number, each in enumerate(wanted) if number == 0 or wanted[number - 1] != each]


class _Handler(BaseHTTPRequestHandler):
    agent: Agent

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.agent.asked.append({"at": time.time(), "path": self.path, **body})
        self.agent.on_asked(body)
        is_known = not set(body) - {"ProtectionEnabled", "ExpiresInMinutes"}
        is_valid = is_known and 1 <= body.get("ExpiresInMinutes", 1) <= 2880
        self._answer(self.agent.answers if is_valid else "400", is_wanted=body["ProtectionEnabled"])

    def _answer(self, answers: str, *, is_wanted: bool) -> None:
        if answers in _FAILURES:
            self._send(200, {"failure": {"Arn": _ARN, "Reason": _FAILURES[answers], "Detail": None}})
        elif answers in _ERRORS:
            status, code, message = _ERRORS[answers]
            error = {"Arn": _ARN, "Code": code, "Message": message}
            self._send(status, {"requestID": str(time.time()), "error": error})
        elif answers == "grant":
            self._send(200, {"protection": {"ProtectionEnabled": is_wanted, "ExpirationDate": None, "TaskArn": _ARN}})
        elif answers == "malformed":
            self._send(200, '{"protection": ')
        elif answers == "hang":
            self.agent.ends.wait(60)
        else:
            self.close_connection = True

    def _send(self, status: int, said: object) -> None:
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Be silent about who hung up."""


@contextmanager
def agent_of_ecs() -> Iterator[Agent]:
    """Give an agent that listens."""
    agent = Agent()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"agent": agent}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    agent.uri = f"http://127.0.0.1:{server.server_address[1]}/api/x"
    try:
        yield agent
    finally:
        agent.ends.set()
        server.shutdown()
        thread.join()
        server.server_close()
