"""Showing a run's progress to others than the store, beside the work and never in its way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchkit.model import Lease, Progress, RunId
from batchkit.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger("batchkit")
_EVERY_SECONDS = 1.0
#: How long a queue may take to show something before it is given up.
_HANGS_SECONDS = 30.0


class Reporter:
    """
    Reads the run's progress after commits, at most once a second, and gives it to *show*, in a thread of its own.

    Whatever *show* does, raise or hang, the work goes on.
    """

    def __init__(self, show: Callable[[Progress], None], store: Store, run_id: RunId, *, is_wanted: bool) -> None:
        self._show = show
        self._store = store
        self._run_id = run_id
        self._moved = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"batchkit-report-{run_id}", daemon=True)
        self._is_wanted = is_wanted

    def watch(self, _: Lease) -> None:
        """Take note that a chunk was committed."""
        self._moved.set()

    def __enter__(self) -> Self:
        if self._is_wanted:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._moved.set()
        if self._is_wanted:
            # Where it stands now is shown, but not so late as to take the place of the end that the queue is told next:
            # a queue that hangs here would hang there as well.
            self._thread.join(timeout=_HANGS_SECONDS)

    def _run(self) -> None:
        while True:
            self._moved.wait()
            self._moved.clear()
            has_ended = self._ended.is_set()
            try:
                self._show(self._store.records.load(self._run_id).progress)
            except Exception:
                _logger.debug("progress could not be shown", extra={"run_id": self._run_id}, exc_info=True)
            if has_ended:
                return
            self._ended.wait(_EVERY_SECONDS)
