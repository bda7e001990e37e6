"""The sources that batchkit ships, and the protocol for your own."""

from batchkit.sources.base import Bounded, Coded, Continued, Counted, Estimate, Fingerprinted, Identified, Source
from batchkit.sources.files import csv_rows, json_lines
from batchkit.sources.sequences import items, span
from batchkit.sources.tables import rows

__all__ = [
    "Bounded",
    "Coded",
    "Continued",
    "Counted",
    "Estimate",
    "Fingerprinted",
    "Identified",
    "Source",
    "csv_rows",
    "items",
    "json_lines",
    "rows",
    "span",
]
