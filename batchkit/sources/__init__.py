"""The sources that batchkit ships, and the protocol for your own."""

from batchkit.sources.base import (
    Bounded,
    Coded,
    Continued,
    Counted,
    Estimate,
    Fingerprinted,
    Identified,
    NotFetched,
    Prefetching,
    Source,
    Splittable,
    Stateful,
    Watched,
    Weighed,
)
from batchkit.sources.files import csv_rows, json_lines
from batchkit.sources.nesting import nested
from batchkit.sources.paging import pages
from batchkit.sources.sequences import items, span
from batchkit.sources.streaming import stream
from batchkit.sources.tables import rows
from batchkit.sources.tabular import parquet_rows

__all__ = [
    "Bounded",
    "Coded",
    "Continued",
    "Counted",
    "Estimate",
    "Fingerprinted",
    "Identified",
    "NotFetched",
    "Prefetching",
    "Source",
    "Splittable",
    "Stateful",
    "Watched",
    "Weighed",
    "csv_rows",
    "items",
    "json_lines",
    "nested",
    "pages",
    "parquet_rows",
    "rows",
    "span",
    "stream",
]
