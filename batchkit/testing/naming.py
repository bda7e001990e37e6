"""Functions by their names, for a process that has to import them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from batchkit.job import JOBS, Startable
from batchkit.testing.errors import InvalidCrashTest


def name_of(function: object, *, role: str) -> str:
    """
    Name a function as `module:name`.

    Raises:
        InvalidCrashTest: another process cannot import it under that name.
    """
    module, name = _module_of(function, role=role), getattr(function, "__qualname__", "")
    named = f"{module}:{name}"
    if not callable(function) or not name or "<" in name:
        raise InvalidCrashTest(
            f"{role} is {function!r}, but the processes that are killed import it: give a function at module level"
        )
    # A program that is run as __main__ is another module there, with functions of its own.
    if function.__module__ != "__main__" and function_named(named) is not function:
        raise InvalidCrashTest(f"{role} is {named}, but under that name another object is imported")
    return named


def module_of_job(job: Startable[...]) -> str:
    """
    Name the module that decorates a job.

    Raises:
        InvalidCrashTest: another process cannot import it, or the job is made inside a function.
    """
    if JOBS.get(job.name) is None or JOBS.function_of(job.name) is not job:
        raise InvalidCrashTest(f"{job!r} is no job; decorate it with @batched at module level")
    if "<" in job.__qualname__:
        raise InvalidCrashTest(
            f"job {job.name} is made inside a function ({job.__qualname__}), but the processes that are killed import "
            f"it: decorate it at module level"
        )
    return _module_of(job, role=f"job {job.name}")


def function_named(name: str) -> Any:  # noqa: ANN401  it may be of any type
    """
    Import what `name_of` named.

    Raises:
        InvalidCrashTest: it cannot be imported.
    """
    module, _, path = name.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidCrashTest(f"{name} cannot be imported: {error}") from error
    return found


def _module_of(function: object, *, role: str) -> str:
    module = getattr(function, "__module__", None) or "__main__"
    if module != "__main__":
        return str(module)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        raise InvalidCrashTest(
            f"{role} is defined in __main__, but the processes that are killed import it: move it into a module, "
            f"or run this one with `python -m`"
        )
    return str(spec.name)
