"""What a partition carries from chunk to chunk, as JSON text."""

from __future__ import annotations

from typing import cast

from batchkit.values import dumps, loads

_NOTHING = "{}"


def read_carry(text: str) -> dict[str, object]:
    """Read what `write_carry` wrote."""
    return cast("dict[str, object]", loads(text)) if text != _NOTHING else {}


def write_carry(carry: dict[str, object]) -> str:
    """
    Write down what a chunk carries.

    Raises:
        NotSerializable: it holds what JSON does not.
    """
    return dumps(carry, where="chunk.carry") if carry else _NOTHING
