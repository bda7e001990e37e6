"""Hooks for platforms, as a user's app makes them, from the one text that the tests' app is given."""

from __future__ import annotations

from batchkit.contrib.http import BusyEndpoint


def endpoint(port: str) -> BusyEndpoint:
    """Make the one that serves over HTTP."""
    return BusyEndpoint(int(port))
