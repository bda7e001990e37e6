"""What is in doubt of a run that works at most once: the items of the chunk that the function is called for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from batchkit.model import FailedItem, RunError

_WHY = (
    "its worker ended, or lost its database, after the item was begun and before its outcome was committed; "
    "whether what the function does happened is not known, so it is not tried again by itself"
)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """An item that the function is going to be called for, once."""

    cursor: str
    #: what it looks like
    item: str
    #: the recorded failure that it is, where failures are tried again
    failure_id: int | None


def write(items: Sequence[Doubtful], *, after: str | None) -> str:
    """Write down what is in doubt, behind the cursor *after*, as JSON text."""
    return json.dumps({"after": after, "items": [[each.cursor, each.item, each.failure_id] for each in items]})


def after_of(text: str) -> str | None:
    """Give the cursor behind which the items stand that were written down."""
    after: str | None = json.loads(text)["after"]
    return after


def recorded(text: str, *, partition: int) -> list[FailedItem]:
    """Give what is recorded of items that stay in doubt. The source is not asked: it may not have them any more."""
    written = json.loads(text)
    before: list[str | None] = [written["after"], *(cursor for cursor, _, _ in written["items"])]
    return [
        FailedItem(
            after=after,
            cursor=cursor,
            item=item,
            error=RunError(type="InDoubt", message=_WHY, traceback="", partition=partition, cursor=after, item=item),
            attempts=1,
            failure_id=failure_id,
            in_doubt=True,
        )
        for after, (cursor, item, failure_id) in zip(before, written["items"], strict=False)
    ]
