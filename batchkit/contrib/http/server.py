"""The server of the WSGI application, in a thread of this process."""

from __future__ import annotations

import errno
import logging
import os
import socket
import socketserver
import sys
import threading
import weakref
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from batchkit.contrib.http.application import BusyApp

_logger = logging.getLogger("batchkit")

#: A client that is slower than this holds a thread for nothing.
_CLIENT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
#: What a machine says that has IPv6 in its kernel and no address of it.
_NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class BusyServer:
    """
    Serves from its making until it is closed.

    Args:
        app: what answers.
        port: where it listens; 0 for any that is free.
        host: the address that it listens on; empty for all of this machine's, IPv6 as well as IPv4.

    Raises:
        OSError: the port is taken, or the address is none of this machine's.
    """

    def __init__(self, app: BusyApp, *, port: int, host: str = "") -> None:
        self._server = _listening(host, port)
        self._server.set_app(app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="batchkit-http", daemon=True
        )
        self._thread.start()
        # A child of the worker that kept the socket would keep the port, and answer nobody, once this process is dead.
        own = weakref.ref(self._server)

        def forget() -> None:
            server = own()
            if server is not None:
                server.socket.close()

        os.register_at_fork(after_in_child=forget)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=_CLOSE_SECONDS)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking for the name of this machine, which may take as long as a resolver does."""
        if self.address_family is socket.AF_INET6 and self.server_address[0] == "":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002  as it is declared there
        """Take note of a client that went away."""
        _logger.debug("a request was not answered", exc_info=sys.exc_info())


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  as it is declared there
        """Log where all of batchkit does, and quietly: probes come every few seconds."""
        _logger.debug("a request: %s", format % args)


def _listening(host: str, port: int) -> _Server:
    if host == "" and socket.has_dualstack_ipv6():
        try:
            return _Server((host, port), socket.AF_INET6)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return _Server((host, port), socket.AF_INET6 if ":" in host else socket.AF_INET)
