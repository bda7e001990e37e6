"""The socket at which a worker's main process listens to its slices."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path


class ListeningSocket:
    """The socket that slices find, and a way to wake up who waits at it."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="batchkit-")
        self.path = Path(self._folder) / "main"
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.server.bind(str(self.path))
            self.server.listen(128)
        except OSError:
            self.server.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.server.settimeout(0)
        self.reader, self._writer = socket.socketpair()
        self.reader.settimeout(0)
        self._writer.settimeout(0)
        self._process = os.getpid()
        # A child that kept it open would take connections that nobody answers, once this process is dead.
        own = weakref.ref(self)

        def forget() -> None:
            listening = own()
            if listening is not None:
                listening.forget()

        os.register_at_fork(after_in_child=forget)

    def wake(self) -> None:
        """Wake up who waits."""
        with suppress(OSError):
            self._writer.send(b"!")

    def forget(self) -> None:
        """Close what a child has inherited."""
        for each in (self.server, self.reader, self._writer):
            with suppress(OSError):
                each.close()

    def close(self) -> None:
        """Close it, and remove its folder."""
        self.forget()
        if os.getpid() == self._process:
            shutil.rmtree(self._folder, ignore_errors=True)
