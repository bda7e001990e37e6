"""Describe what a user's function raised, so that every database can store it."""

from __future__ import annotations

import traceback

from batchkit.model import RunError

_LONGEST = 20_000


def describe(error: BaseException, *, partition: int, cursor: str | None) -> RunError:
    """Make the record of an error that came behind *cursor*."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return RunError(
        type=name,
        message=safe_text(error),
        traceback=safe_text("".join(traceback.format_exception(error))),
        partition=partition,
        cursor=cursor,
    )


def safe_text(value: object) -> str:
    """Make text that every database can store: some errors have none, or one with bytes that are no text."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001  a broken __str__ must not hide that there was an error
        text = f"a {type(value).__qualname__} whose text cannot be made"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[-_LONGEST:]
