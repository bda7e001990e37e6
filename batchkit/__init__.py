"""
Split long background jobs so that nothing can hurt them.

Names are resolved when first used: importing SQLAlchemy takes longer than all the rest, and a command line that only
prints its help should not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchkit.app import BatchKit
    from batchkit.chunk import Chunk, Finish, current_chunk, current_session
    from batchkit.decorator import batched
    from batchkit.errors import BatchkitError
    from batchkit.job import EachJob, Job, ResumableJob
    from batchkit.model import Failure, Partition, Progress, RunError, Transition
    from batchkit.resuming import resumable
    from batchkit.run import Run
    from batchkit.sizing import Adaptive
    from batchkit.sources import (
        Source,
        csv_rows,
        items,
        json_lines,
        nested,
        pages,
        parquet_rows,
        rows,
        span,
        stream,
    )
    from batchkit.states import RunState
    from batchkit.steps import Steps
    from batchkit.throttle import Throttle

_HOMES = {
    "Adaptive": "batchkit.sizing",
    "BatchKit": "batchkit.app",
    "BatchkitError": "batchkit.errors",
    "Chunk": "batchkit.chunk",
    "EachJob": "batchkit.job",
    "Failure": "batchkit.model",
    "Finish": "batchkit.chunk",
    "Job": "batchkit.job",
    "Partition": "batchkit.model",
    "Progress": "batchkit.model",
    "ResumableJob": "batchkit.job",
    "Run": "batchkit.run",
    "RunError": "batchkit.model",
    "RunState": "batchkit.states",
    "Source": "batchkit.sources",
    "Steps": "batchkit.steps",
    "Throttle": "batchkit.throttle",
    "Transition": "batchkit.model",
    "batched": "batchkit.decorator",
    "csv_rows": "batchkit.sources",
    "current_chunk": "batchkit.chunk",
    "current_session": "batchkit.chunk",
    "items": "batchkit.sources",
    "json_lines": "batchkit.sources",
    "nested": "batchkit.sources",
    "pages": "batchkit.sources",
    "parquet_rows": "batchkit.sources",
    "resumable": "batchkit.resuming",
    "rows": "batchkit.sources",
    "span": "batchkit.sources",
    "stream": "batchkit.sources",
}

__all__ = [
    "Adaptive",
    "BatchKit",
    "BatchkitError",
    "Chunk",
    "EachJob",
    "Failure",
    "Finish",
    "Job",
    "Partition",
    "Progress",
    "ResumableJob",
    "Run",
    "RunError",
    "RunState",
    "Source",
    "Steps",
    "Throttle",
    "Transition",
    "batched",
    "csv_rows",
    "current_chunk",
    "current_session",
    "items",
    "json_lines",
    "nested",
    "pages",
    "parquet_rows",
    "resumable",
    "rows",
    "span",
    "stream",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        # The app module tells jobs how to make a kit where none was built, so it is there before any of them.
        importlib.import_module("batchkit.app")
        found: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  slow, and few ask

        return version("batchkit-jobs")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
