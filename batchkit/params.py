"""Check a job's two functions against each other, and a run's params against the job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from batchkit.errors import InvalidJob, InvalidParams, NotSerializable
from batchkit.values import dumps, loads

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def signature_of(function: Callable[..., object], *, role: str) -> inspect.Signature:
    """
    Give the signature of *function*, whose *role* is named in the error.

    Raises:
        InvalidJob: a parameter of it cannot be given by name.
    """
    # Annotations stay as they are written: resolving them may import what is only there for a type checker.
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind not in _BY_NAME:
            raise InvalidJob(
                f"{role} {function.__qualname__} takes {parameter}, but params are stored and given by name; "
                f"write each of them out, such as (domain: str, limit: int = 10)"
            )
    return signature


def params_signature(function: Callable[..., object], *, role: str, first: str) -> inspect.Signature:
    """
    Give the signature of *function* without its first parameter, which is *first*.

    Raises:
        InvalidJob: there is no first parameter, or another cannot be given by name.
    """
    signature = signature_of(function, role=role)
    names = list(signature.parameters)
    if not names:
        raise InvalidJob(
            f"{role} {function.__qualname__} takes nothing, but {first} is its first parameter: "
            f"def {function.__name__}({first.lower()}: {first}, ...)"
        )
    return signature.replace(parameters=[p for name, p in signature.parameters.items() if name != names[0]])


def check_same_params(source: inspect.Signature, function: inspect.Signature, *, role: str, first: str) -> None:
    """
    Refuse a function whose params are not those of the source.

    Raises:
        InvalidJob: it shows the form that is right.
    """
    if list(source.parameters) != list(function.parameters):
        right = ", ".join([f"{first.lower()}: {first}", *map(str, source.parameters.values())])
        raise InvalidJob(
            f"the source takes ({', '.join(source.parameters)}) but {role} takes ({', '.join(function.parameters)}) "
            f"after its first parameter; both get the params of the run, so write ({right})"
        )


def pack(job: str, signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """
    Bind a call to *signature* and write the params, defaults included, as JSON text.

    Raises:
        InvalidParams: they do not fit, or one cannot be stored.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidParams(job, f"{error}; it takes {_shown(signature)}") from None
    bound.apply_defaults()
    try:
        packed = [
            f"{dumps(name, where=name)}:{dumps(value, where=f'the param {name}')}"
            for name, value in bound.arguments.items()
        ]
    except NotSerializable as error:
        raise InvalidParams(job, str(error)) from error
    return "{" + ",".join(packed) + "}"


def unpack(job: str, signature: inspect.Signature, text: str) -> dict[str, object]:
    """
    Read the params of a run and check them against the job as it is now.

    Raises:
        InvalidParams: the job takes other params than the run was started with.
    """
    params = loads(text)
    if not isinstance(params, dict):
        raise InvalidParams(job, f"the stored params are not an object: {text[:200]}")
    try:
        bound = signature.bind(**params)
    except TypeError as error:
        problem = f"the run was started with other params: {error}; it takes {_shown(signature)}"
        raise InvalidParams(job, problem) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _shown(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty))
