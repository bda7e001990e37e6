"""Rows of tables: walking them by key, counting them, and cutting them into ranges."""

from batchkit.sources.tables.source import rows

__all__ = ["rows"]
