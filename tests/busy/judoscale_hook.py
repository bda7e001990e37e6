"""The hook for Judoscale, made by the name that workers are given."""

from __future__ import annotations

from batchkit.contrib.judoscale import JudoscaleHook


class Hook(JudoscaleHook):
    """Looks as often as it is told."""

    def __init__(self, look_seconds: str) -> None:
        super().__init__(look_seconds=float(look_seconds))
