"""Working the items of a chunk one by one, for jobs whose function takes an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchkit.chunk import Chunk


def work_each(
    function: Callable[..., object],
    chunk: Chunk[Any],
    params: Mapping[str, object],
    *,
    is_apart: bool,
    is_of_chunk: Callable[[Exception], bool],
) -> None:
    """
    Call *function* with each item of *chunk*.

    With *is_apart*, what an item raises is rolled back to a savepoint in front of it, and the item is given up;
    without, it is raised. Savepoints are for second tries: PostgreSQL slows down where a transaction has over 64.

    Args:
        is_of_chunk: whether an error is no fault of the item, and is raised in any case.
    """
    if not is_apart:
        for item in chunk:
            function(item, **params)
        return
    for index, item in enumerate(chunk):
        # Around the session's own savepoint, which begins with the session's first statement and ends with a commit()
        # of the function's.
        savepoint = chunk.connection.begin_nested()
        try:
            with chunk.session.begin_nested():
                function(item, **params)
            chunk.session.flush()
        except Exception as error:
            if is_of_chunk(error):
                raise
            savepoint.rollback()
            # What the session has kept of rows that are as they were before.
            chunk.session.expire_all()
            chunk.give_up(index, error)
        else:
            savepoint.commit()
