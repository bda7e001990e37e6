"""A job whose module does not import the one that builds the kit."""

from __future__ import annotations

from batchkit import Chunk, batched, span


@batched(span(3), name="kitless")
def kitless(chunk: Chunk[int]) -> None:
    """Do nothing."""
