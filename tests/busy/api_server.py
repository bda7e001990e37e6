"""What plays the API server: over TLS, it takes merge patches of one pod, and goes wrong as it is told."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

TOKEN = "first-token"  # noqa: S105  it is nobody's
PATH = "/api/v1/namespaces/shop/pods/worker-7d9f-x2x4z"


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    content_type: str | None
    authorization: str | None
    patch: Any


@dataclass
class ApiServer:
    """A pod, and who has patched it."""

    folder: Path
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=lambda: {"prometheus.io/scrape": "true"})
    #: statuses to answer with, one after the other; 0 is a hang
    troubles: list[int] = field(default_factory=list)
    #: what ends hangs
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def account(self) -> Path:
        """What is mounted into the pod."""
        return self.folder / "serviceaccount"

    @property
    def env(self) -> dict[str, str]:
        """What Kubernetes puts into the environment of each container, and the manifest beside it."""
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.port),
            "POD_NAME": PATH.rpartition("/")[2],
        }

    @property
    def costs(self) -> list[str]:
        """The costs that were asked for, in order."""
        return [each.patch["metadata"]["annotations"][COST] for each in self.asked]

    def exchange_token(self, token: str) -> None:
        """Do as the kubelet does when a token grows old."""
        (self.account / "token").write_text(token)


COST = "controller.kubernetes.io/pod-deletion-cost"


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """Give a server that ends with the block."""
    server = ApiServer(folder)
    server.account.mkdir()
    server.exchange_token(TOKEN)
    (server.account / "namespace").write_text("shop")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(server.account / "ca.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    listening.daemon_threads = True
    listening.block_on_close = False
    listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    server.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        listening.shutdown()
        thread.join()
        listening.server_close()


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.command, self.path, self.headers["Content-Type"], self.headers["Authorization"], body)
            server.asked.append(asked)
            trouble = server.troubles.pop(0) if server.troubles else 200
            if trouble == 0:
                server.is_over.wait(60)
                return
            if trouble != 200:
                self._answer(trouble, {"kind": "Status", "message": f"trouble {trouble}"})
                return
            for name, value in body["metadata"]["annotations"].items():
                if value is None:
                    server.annotations.pop(name, None)
                else:
                    assert isinstance(value, str), "an annotation is a string"
                    server.annotations[name] = value
            self._answer(200, {"kind": "Pod"})

        def _answer(self, status: int, facts: dict[str, str]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(facts).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as it is declared there
            pass

    return Handler
