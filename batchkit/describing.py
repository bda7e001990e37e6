"""Describe what a user's function raised, so that every database can store it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from batchkit.model import RunError

_LONGEST = 20_000
_LONGEST_ITEM = 2_000


def describe(error: BaseException, *, partition: int, cursor: str | None, item: str | None = None) -> RunError:
    """Make the record of an error that came behind *cursor*, at an item that looked like *item*."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return RunError(
        type=name,
        message=safe_text(error),
        traceback=safe_text("".join(traceback.format_exception(error))),
        partition=partition,
        cursor=cursor,
        item=item,
    )


def describe_item(item: object, choose: Callable[[Any], object] | None) -> str:
    """
    Make text that shows people which item it was: what *choose* gives for it, or what it is made of.

    No database is asked: its transaction may be broken by the very item.
    """
    try:
        return _readable(item if choose is None else choose(item))[:_LONGEST_ITEM]
    except Exception as error:  # noqa: BLE001  what cannot be shown must not hide that it failed
        return f"a {type(item).__qualname__} that cannot be shown: {safe_text(error)[:_LONGEST_ITEM]}"


def _readable(value: object) -> str:
    mapper = getattr(type(value), "__mapper__", None)
    if mapper is None:
        return safe_text(repr(value))
    # An ORM object's own text is its address; what it has loaded is what people know it by.
    loaded = {name: value.__dict__[name] for name in mapper.column_attrs.keys() if name in value.__dict__}  # noqa: SIM118  no mapping
    return safe_text(f"{type(value).__qualname__}({', '.join(f'{name}={each!r}' for name, each in loaded.items())})")


def safe_text(value: object) -> str:
    """Make text that every database can store: some errors have none, or one with bytes that are no text."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001  a broken __str__ must not hide that there was an error
        text = f"a {type(value).__qualname__} whose text cannot be made"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[-_LONGEST:]
