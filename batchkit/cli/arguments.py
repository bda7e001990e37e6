"""Params on the command line: `key=value` by the job's annotations, `key:=JSON` as it is."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, Union
from uuid import UUID

from batchkit.cli.ending import UsageProblem
from batchkit.job import Definition
from batchkit.params import pack
from batchkit.values import loads

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}
_NO_NAMES: types.MappingProxyType[str, object] = types.MappingProxyType({})


def read_params(job: Definition, arguments: Sequence[str]) -> str:
    """
    Make the params of a run of *job* from `key=value` and `key:=JSON` arguments.

    Raises:
        UsageProblem: an argument is not of that form, or its param is unknown, missing, twice there or of another type.
        InvalidParams: a value cannot be stored.
    """
    kinds = param_types(job)
    params: dict[str, object] = {}
    for argument in arguments:
        found = re.match(r"([^\W\d]\w*)(:?=)(.*)", argument, re.DOTALL)
        if found is None:
            raise UsageProblem(f"{argument!r} is no param; write key=value, or key:=JSON for what is no text")
        name, sign, text = found.groups()
        if name not in job.signature.parameters:
            raise UsageProblem(f"job {job.name} has no param {name!r}; it takes {shown_params(job)}")
        if name in params:
            raise UsageProblem(f"the param {name!r} is given twice")
        params[name] = _read_json(name, text) if sign == ":=" else _read(job, name, text, kinds[name])
    for name, parameter in job.signature.parameters.items():
        if name not in params and parameter.default is inspect.Parameter.empty:
            raise UsageProblem(
                f"job {job.name} needs the param {name!r} ({shown_type(kinds[name])}): give {name}=...; "
                f"it takes {shown_params(job)}"
            )
    return pack(job.name, job.signature, (), params)


def read_cursor(text: str | None) -> object:
    """Read a cursor as `show --json` and the failures show it: JSON, or else the text itself."""
    if text is None:
        return None
    try:
        return loads(text)
    except ValueError:
        return text


def param_types(job: Definition) -> dict[str, object]:
    """Give the types of a job's params; str where there is no annotation, or one that means nothing here."""
    return {name: _resolved(job.make_source, p.annotation) for name, p in job.signature.parameters.items()}


def shown_params(job: Definition) -> str:
    """Show a job's params as a person would write them in Python."""
    return str(job.signature.replace(return_annotation=inspect.Signature.empty)).replace("'", "")


def shown_type(kind: object) -> str:
    """Show a type as a person would write it."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _resolved(source: Callable[..., object], annotation: object) -> object:
    if annotation is inspect.Parameter.empty:
        return str
    while isinstance(source, functools.partial):
        source = source.func
    names = getattr(inspect.unwrap(source), "__globals__", _NO_NAMES)
    # One at a time: an annotation that is there for type checkers only must not hide the others.
    holder: Any = types.SimpleNamespace(__annotations__={"param": annotation})  # Any: it stands for a function
    try:
        return typing.get_type_hints(holder, globalns=dict(names))["param"]
    except Exception:  # noqa: BLE001  an annotation may hold anything
        return str


def _read_json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageProblem(f"the param {name!r} is given as JSON, but {text!r} is none: {error}") from None


def _read(job: Definition, name: str, text: str, kind: object) -> object:
    try:
        return _converted(text, kind)
    except _NotText:
        raise UsageProblem(
            f"job {job.name}: the param {name!r} is {shown_type(kind)}, which text cannot say; "
            f"give it as JSON: {name}:=..."
        ) from None
    except (ValueError, InvalidOperation) as error:
        raise UsageProblem(
            f"job {job.name}: the param {name!r} is {shown_type(kind)}: got {text!r}{_detail(error)}"
        ) from None


def _detail(error: Exception) -> str:
    return f" ({error})" if isinstance(error, _NoneOf) else ""


class _NoneOf(ValueError):
    pass


class _NotText(Exception):
    pass


def _converted(text: str, kind: object) -> object:
    kind = getattr(kind, "__supertype__", kind)
    origin = typing.get_origin(kind)
    if origin in {Union, types.UnionType}:
        return _one_of(text, typing.get_args(kind))
    if origin is Literal:
        return _named(text, {_shown_literal(value): value for value in typing.get_args(kind)})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        by_value = {str(member.value): member for member in kind}
        return _named(text, {**by_value, **kind.__members__})
    if kind in _READERS:
        return _READERS[kind](text)
    raise _NotText


def _one_of(text: str, kinds: tuple[object, ...]) -> object:
    # Text fits str whatever it says, so that is tried last; then "none" is text as well, and None is key:=null.
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType or str not in kinds)
    error: Exception = _NotText()
    for kind in sorted(kinds, key=lambda each: each is str):
        try:
            return _converted(text, kind)
        except (ValueError, InvalidOperation) as caught:
            error = caught if not isinstance(error, _NoneOf) else error
        except _NotText:
            continue
    raise error


def _named(text: str, values: dict[str, Any]) -> object:
    if text not in values:
        raise _NoneOf(f"it is one of {', '.join(values)}")
    return values[text]


def _shown_literal(value: object) -> str:
    return value.name if isinstance(value, enum.Enum) else str(value)


def _read_none(text: str) -> object:
    if text.lower() not in _NONE:
        raise ValueError(text)
    return None


def _read_bool(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise _NoneOf("it is true or false")
    return text.lower() in _TRUE


def _read_datetime(text: str) -> dt.datetime:
    # Python 3.10 does not know the Z for UTC.
    return dt.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)


_READERS: dict[object, Callable[[str], object]] = {
    types.NoneType: _read_none,
    str: str,
    object: str,
    Any: str,
    int: int,
    float: float,
    bool: _read_bool,
    Decimal: Decimal,
    UUID: UUID,
    dt.datetime: _read_datetime,
    dt.date: dt.date.fromisoformat,
    dt.time: dt.time.fromisoformat,
    dt.timedelta: lambda text: dt.timedelta(seconds=float(text)),
}
