"""The public face as a user writes it. It is checked by type checkers, strictly, and never run."""

from __future__ import annotations

from batchkit import BatchKit, Chunk, batched, span
from batchkit.sources import Source

kit = BatchKit("sqlite:///app.db")


def numbers(limit: int) -> Source[int]:
    return span(0, limit)


@batched(numbers, chunk_size=100)
def count(chunk: Chunk[int], limit: int) -> None:
    for number in chunk:
        assert number < limit
