"""The names of workers: the instance, which a platform starts and stops as one, and the process."""

from __future__ import annotations

import os
import socket

#: Names the instance where its host name does not: on Heroku, say, BATCHKIT_INSTANCE=$DYNO.
VARIABLE = "BATCHKIT_INSTANCE"


def instance_name() -> str:
    """Name the dyno, pod, task or machine that this process is part of."""
    return os.environ.get(VARIABLE) or socket.gethostname()


def worker_name(pid: int | None = None) -> str:
    """Name this process, or another of this instance, to people: instance and process id."""
    return f"{instance_name()}:{pid or os.getpid()}"
