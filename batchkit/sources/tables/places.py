"""Values of keys as whole numbers in the same order, so that there is a middle between two of them."""

from __future__ import annotations

import bisect
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

#: How many characters of a text count, behind those that all have in common.
_CHARACTERS = 12
_DIGITS = 9
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  moments without a zone are told from each other as well
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Places:
    """Turns values into numbers, and numbers into values that need not be there."""

    of: Callable[[Any], int]
    value: Callable[[int], Any]


def places_of(values: Sequence[object], *, uuids_by_node: bool) -> Places | None:
    """Say how values such as *values* are counted; None where their type is not known."""
    first = values[0]
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return _of_text(texts)
    if isinstance(first, uuid.UUID) and uuids_by_node:
        return Places(_of_uuid_by_node, _uuid_by_node)
    if isinstance(first, datetime):
        epoch = _EPOCH if first.tzinfo is None else _EPOCH_UTC
        return Places(lambda value: (value - epoch) // _MICROSECOND, lambda place: epoch + place * _MICROSECOND)
    for kind, places in _KINDS.items():
        if isinstance(first, kind) and not isinstance(first, bool):
            return places
    return None


def _of_uuid_by_node(value: uuid.UUID) -> int:
    """Count in MariaDB's order, by which those of one machine lie together, and among them by time."""
    parts = value.bytes
    return int.from_bytes(parts[10:] + parts[8:10] + parts[6:8] + parts[4:6] + parts[:4], "big")


def _uuid_by_node(place: int) -> uuid.UUID:
    parts = place.to_bytes(16, "big")
    # With a version, since MariaDB takes none without.
    return uuid.UUID(bytes=parts[12:] + parts[10:12] + parts[8:10] + parts[6:8] + parts[:6], version=4)


def _of_decimal(value: Decimal) -> int:
    return int(value.scaleb(_DIGITS).to_integral_value())


_KINDS: dict[type, Places] = {
    int: Places(int, int),
    uuid.UUID: Places(lambda value: value.int, lambda place: uuid.UUID(int=place)),
    date: Places(lambda value: value.toordinal(), date.fromordinal),
    Decimal: Places(_of_decimal, lambda place: Decimal(place).scaleb(-_DIGITS)),
}


def _of_text(texts: Sequence[str]) -> Places:
    """
    Count text by its first characters behind what all have in common, in the digits that they are made of.

    Where the database has another order than that of characters, the middle of two texts is a worse guess.
    """
    prefix = os.path.commonprefix(texts)  # noqa: RUF071  character by character is what is wanted
    alphabet = sorted({character for text in texts for character in text[len(prefix) :]} | {" "})
    radix = len(alphabet)

    def of(text: str) -> int:
        if not text.startswith(prefix):
            return 0 if text < prefix else radix**_CHARACTERS - 1
        number = 0
        for character in text[len(prefix) : len(prefix) + _CHARACTERS].ljust(_CHARACTERS):
            number = number * radix + max(0, bisect.bisect_right(alphabet, character) - 1)
        return number

    def value(place: int) -> str:
        characters: list[str] = []
        for _ in range(_CHARACTERS):
            place, digit = divmod(place, radix)
            characters.append(alphabet[digit])
        return prefix + "".join(reversed(characters)).rstrip()

    return Places(of, value)
