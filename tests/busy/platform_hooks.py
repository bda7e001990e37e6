"""Hooks for platforms, as a user's app makes them, from the one text that the tests' app is given."""

from __future__ import annotations

from pathlib import Path

from batchkit.contrib.http import BusyEndpoint
from batchkit.contrib.kubernetes import PodDeletionCost


def endpoint(port: str) -> BusyEndpoint:
    """Make the one that serves over HTTP."""
    return BusyEndpoint(int(port))


def deletion_cost(account: str) -> PodDeletionCost:
    """Make the one that patches its pod."""
    return PodDeletionCost(least_interval=0.1, keep_node=True, account=Path(account))
