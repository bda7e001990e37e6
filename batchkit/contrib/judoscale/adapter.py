"""The parts of judoscale's adapter that are used here."""

from __future__ import annotations

import importlib
from typing import Any

from batchkit.errors import InvalidHook


def reporter() -> Any:  # noqa: ANN401  it ships no types
    """
    Give the reporter of this process.

    Raises:
        InvalidHook: the package is not there.
    """
    return _module("judoscale.core.reporter").reporter


def is_enabled() -> bool:
    """Tell whether the adapter knows where to report to: it does nothing where it does not, as on a laptop."""
    return bool(reporter().config.is_enabled)


def busy_metric(queue: str, count: int) -> Any:  # noqa: ANN401  the same
    """Make the metric that says how many jobs of a queue are busy."""
    return _module("judoscale.core.metric").Metric.for_busy_queue(queue, count)


def _module(name: str) -> Any:  # noqa: ANN401  the same
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "judoscale":
            raise
        raise InvalidHook(
            "this takes the package judoscale, which is not there: pip install 'batchkit-jobs[judoscale]'"
        ) from None
