"""Holds that are ready to use: what a database in need says of itself."""

from __future__ import annotations

from batchkit.throttle import HoldOff

__all__ = ["HoldOff"]
