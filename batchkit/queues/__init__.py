"""The queues that wake workers up. Those that need another package are imported when they are first named."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from batchkit.queues.inline import InlineQueue
from batchkit.queues.local import LocalQueue

if TYPE_CHECKING:
    from batchkit.queues.celery import CeleryQueue
    from batchkit.queues.rq import RQQueue

_NEEDS_A_PACKAGE = {"CeleryQueue": "celery", "RQQueue": "rq"}

__all__ = ["CeleryQueue", "InlineQueue", "LocalQueue", "RQQueue"]


def __getattr__(name: str) -> object:
    package = _NEEDS_A_PACKAGE.get(name)
    if package is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        module = importlib.import_module(f"batchkit.queues.{package}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("batchkit"):
            raise
        message = f"{name} needs the package {error.name}: pip install 'batchkit-jobs[{package}]'"
        raise ImportError(message) from error
    found: object = getattr(module, name)
    globals()[name] = found
    return found
