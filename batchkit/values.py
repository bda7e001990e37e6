"""
Write Python values as JSON text and read the same values back.

Values that JSON lacks are objects with one key that begins with a dollar sign. Nothing is ever unpickled or imported.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import json
import math
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TypeAlias, cast
from uuid import UUID

from batchkit.errors import NotSerializable

#: Marks the cursor of a generator that has returned, around the last one that it yielded.
ENDED = "$ended"

# json.dumps would make one each time, and a cursor is written in each chunk.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def dumps(value: object, *, where: str) -> str:
    """
    Write *value* as JSON text; *where* names it in the error.

    Raises:
        NotSerializable: some part of it would not come back as the same value.
    """
    return _ENCODER.encode(_plain(value, where))


def loads(text: str) -> object:
    """Read what `dumps` wrote."""
    return _rich(json.loads(text))


def _plain(value: object, where: str) -> Json:
    # Enum first: members of str and int enums would pass for plain values and come back as such.
    if isinstance(value, enum.Enum):
        return {"$enum": [type(value).__module__, type(value).__qualname__, value.name]}
    if value is None or type(value) in (bool, int, str):
        return value  # type: ignore[return-value]
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) in (list, tuple):
        plain = [_plain(each, f"{where}[{index}]") for index, each in enumerate(cast("list[object]", value))]
        return plain if type(value) is list else {"$tuple": plain}
    if type(value) is dict:
        return _plain_dict(value, where)
    for kind, (tag, write, _) in _TAGGED.items():
        if type(value) is kind:
            return {tag: write(value)}
    raise NotSerializable(value, where=where)


def _plain_dict(value: Mapping[object, object], where: str) -> Json:
    for key in value:
        if type(key) is not str:
            raise NotSerializable(key, where=f"the key {key!r} of {where}", reason="keys of a dict must be strings")
    plain: dict[str, Json] = {str(key): _plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if len(plain) == 1 and next(iter(plain)).startswith("$"):
        return {"$dict": plain}
    return plain


def _rich(plain: Json) -> object:
    if isinstance(plain, list):
        return [_rich(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        tag, content = next(iter(plain.items()))
        if tag in _READERS:
            return _READERS[tag](content)
    return {key: _rich(each) for key, each in plain.items()}


def _read_enum(content: Json) -> enum.Enum:
    module, qualname, member = content  # type: ignore[misc, str-unpack]
    found: object = sys.modules.get(str(module))
    for name in str(qualname).split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, enum.Enum) and str(member) in found.__members__):
        raise NotSerializable(
            content,
            where=f"the stored {module}.{qualname}.{member}",
            reason="this process has no such Enum member; import its module, or keep the old name as an alias",
        )
    return found[str(member)]


def _read_datetime(content: tuple[str, int]) -> dt.datetime:
    text, fold = content
    return dt.datetime.fromisoformat(text).replace(fold=fold)


def _timedelta_parts(value: dt.timedelta) -> Json:
    return [value.days, value.seconds, value.microseconds]


# Exact types only: a subclass would come back as its base. datetime before date matters not, since types are compared.
_TAGGED: dict[type, tuple[str, Callable[..., Json], Callable[..., object]]] = {
    dt.datetime: ("$datetime", lambda v: [v.isoformat(), v.fold], _read_datetime),
    dt.date: ("$date", dt.date.isoformat, dt.date.fromisoformat),
    dt.time: ("$time", dt.time.isoformat, dt.time.fromisoformat),
    dt.timedelta: ("$timedelta", _timedelta_parts, lambda c: dt.timedelta(*c)),
    Decimal: ("$decimal", str, Decimal),
    UUID: ("$uuid", str, UUID),
    bytes: ("$bytes", lambda v: base64.b64encode(v).decode(), base64.b64decode),
}

_READERS: dict[str, Callable[..., object]] = {
    **{tag: read for tag, _, read in _TAGGED.values()},
    "$float": float,
    "$tuple": lambda content: tuple(_rich(each) for each in content),
    "$dict": lambda content: {key: _rich(each) for key, each in content.items()},
    "$enum": _read_enum,
    ENDED: _rich,
}
