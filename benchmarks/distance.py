"""A database at a distance: what is sent to it arrives later, so that each round trip takes so much longer."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import make_url

_BUFFER = 1 << 16


@contextmanager
def away(url: str, *, seconds: float) -> Iterator[str]:
    """Give an address of the database at *url* at which each round trip takes *seconds* longer."""
    address = make_url(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = multiprocessing.get_context("fork").Process(
            target=_serve, args=(listener, (address.host or "127.0.0.1", address.port or 5432), seconds), daemon=True
        )
        wire.start()
        port: int = listener.getsockname()[1]
    try:
        yield address.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        wire.kill()
        wire.join()


def _serve(listener: socket.socket, server: tuple[str, int], seconds: float) -> None:
    while True:
        client, _ = listener.accept()
        behind = socket.create_connection(server)
        for each in (client, behind):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_pass_on, args=(client, behind, seconds), daemon=True).start()
        threading.Thread(target=_pass_on, args=(behind, client, 0.0), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Pass on what comes, each piece so much later than it came; one does not wait for another."""
    under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_deliver, args=(under_way, target), daemon=True).start()
    data = b"begin"
    while data:
        try:
            data = source.recv(_BUFFER)
        except OSError:
            data = b""
        under_way.put((time.monotonic() + seconds, data))


def _deliver(under_way: queue.SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
    with suppress(OSError):
        while True:
            at, data = under_way.get()
            if not data:
                break
            time.sleep(max(0.0, at - time.monotonic()))
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
