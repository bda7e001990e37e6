"""A worker process ends with the process that started it, even if that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import MutableMapping

PARENT_VARIABLE = "BATCHKIT_PARENT"

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent(environment: MutableMapping[str, str]) -> None:
    """
    Get SIGTERM when the parent that is named in *environment* dies; without one, do nothing.

    It is not named for the children of this process.
    """
    named = environment.pop(PARENT_VARIABLE, "")
    if not named.isdigit():
        return
    parent = int(named)
    if not _ask_kernel():
        threading.Thread(target=_poll, args=(parent,), name="batchkit-parent", daemon=True).start()
    # It may have died before it was asked for.
    if os.getppid() != parent:
        sys.exit(0)


def _ask_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return int(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)) == 0
    except (OSError, AttributeError):  # a libc without it
        return False


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
