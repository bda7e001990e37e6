"""Telling of a run's end by its queue: one worker at a time, for as long as that takes."""

from __future__ import annotations

import logging
import threading

from batchkit.model import RunId
from batchkit.store import Store

_logger = logging.getLogger("batchkit")
#: A third of the time for which the right to tell is held.
_EVERY_SECONDS = 6.0


class Telling:
    """
    The right to tell of the end of a run, from the moment it was won until `done`.

    A queue whose callbacks take long keeps it with `keep`; otherwise another message may try 20 s later.
    """

    def __init__(self, store: Store, run_id: RunId) -> None:
        self._store = store
        self.run_id = run_id
        self._is_over = threading.Event()

    def keep(self) -> None:
        """Keep the right while this process lives, in a thread, until `done`."""
        threading.Thread(target=self._keep, name=f"batchkit-telling-{self.run_id}", daemon=True).start()

    def done(self) -> None:
        """Write down that the end was told."""
        self._is_over.set()
        try:
            self._store.announcements.announced(self.run_id)
        except Exception:
            _logger.exception("that the end of a run was told could not be written down; it is told again")

    def give_up(self) -> None:
        """Leave it to a later message: the queue did not tell of the end."""
        self._is_over.set()

    def _keep(self) -> None:
        while not self._is_over.wait(_EVERY_SECONDS):
            try:
                self._store.announcements.keep_announcing(self.run_id)
            except Exception:
                _logger.warning("the right to tell of a run's end could not be kept", exc_info=True)
