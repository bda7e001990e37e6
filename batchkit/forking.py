"""Forking while threads work: a child would inherit the locks that they hold, and nobody to release them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FORK_WAITS_SECONDS = 2.0


class ForkGuard:
    """Lets no fork of this process happen in the middle of what is done inside `at_work`, if it can wait for that."""

    def __init__(self, *, waits: float | None = None) -> None:
        """Make it; a fork waits for so many seconds at the most, or for a time that is enough for most things."""
        self._waits = waits
        self._at_work = threading.Lock()
        #: the threads that fork, and have the lock for that
        self._forking: set[int] = set()
        self._process = os.getpid()
        # Handlers cannot be taken back, and must keep nothing alive.
        own = weakref.ref(self)

        def tell(step: Callable[[ForkGuard], None]) -> None:
            guard = own()
            if guard is not None:
                step(guard)

        os.register_at_fork(
            before=lambda: tell(ForkGuard.before),
            after_in_parent=lambda: tell(ForkGuard.after),
            after_in_child=lambda: tell(ForkGuard.after_in_child),
        )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep forks waiting for the length of the block."""
        with self._at_work:
            yield

    def before(self) -> None:
        """Wait for what is being done."""
        if os.getpid() == self._process and self._at_work.acquire(timeout=self._longest_wait):
            self._forking.add(threading.get_ident())

    @property
    def _longest_wait(self) -> float:
        return _FORK_WAITS_SECONDS if self._waits is None else self._waits

    def after(self) -> None:
        """Let it go on."""
        if os.getpid() == self._process and threading.get_ident() in self._forking:
            self._forking.discard(threading.get_ident())
            self._at_work.release()

    def after_in_child(self) -> None:
        """Forget the parent's lock, which may be held here for ever."""
        self._at_work = threading.Lock()
