"""A wire between a worker and its database that can be cut at a COMMIT, before or after the server has seen it."""

from __future__ import annotations

import enum
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_COMMIT = b"COMMIT"
_BUFFER = 1 << 16


class Cut(enum.Enum):
    """Where the wire is cut."""

    #: the server never hears of the COMMIT
    BEFORE_SERVER = "before the server"
    #: the server commits, and its reply is lost
    BEFORE_CLIENT = "before the client"


class CommitCutter:
    """Passes bytes on, and cuts the connection at the next COMMIT after `arm`."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cut: Cut | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        #: how often it has cut
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, cut: Cut) -> None:
        """Cut at the next COMMIT."""
        with self._lock:
            self._cut = cut

    def close(self) -> None:
        """Cut everything."""
        self._listener.close()
        for each in self._open:
            _shut(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._open += [client, server]
                state = {"reply is lost": False}
                threading.Thread(target=self._to_server, args=(client, server, state), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client, state), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, state: dict[str, bool]) -> None:
        with suppress(OSError):
            while data := client.recv(_BUFFER):
                cut = self._take() if _COMMIT in data else None
                if cut is Cut.BEFORE_SERVER:
                    break
                state["reply is lost"] = cut is Cut.BEFORE_CLIENT
                server.sendall(data)
        _shut(client)
        _shut(server)

    def _to_client(self, server: socket.socket, client: socket.socket, state: dict[str, bool]) -> None:
        with suppress(OSError):
            while data := server.recv(_BUFFER):
                # The server has replied, so it has committed; the client is not to hear of it.
                if state["reply is lost"]:
                    break
                client.sendall(data)
        _shut(client)
        _shut(server)

    def _take(self) -> Cut | None:
        with self._lock:
            cut, self._cut = self._cut, None
            self.cuts += cut is not None
            return cut


@contextmanager
def cutter(port: int) -> Iterator[CommitCutter]:
    """Run a cutter in front of a server's port."""
    made = CommitCutter(port)
    try:
        yield made
    finally:
        made.close()


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
