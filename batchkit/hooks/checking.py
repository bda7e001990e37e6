"""Refusing hooks that would never be called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from batchkit.errors import InvalidHook
from batchkit.hooks.busyness import BusyHook
from batchkit.hooks.runs import Happening, RunHook

#: The methods of each kind of hook, and how each of them is called.
_RUN_METHODS = {each.value: "event: RunEvent" for each in Happening}
_BUSY_METHODS = {
    "begin": "context: HookContext",
    "protect": "state: WorkerState",
    "changed": "state: WorkerState",
    "repeated": "state: WorkerState",
    "checkpointed": "state: WorkerState",
    "end": "",
}
_ARTICLES = {"event: RunEvent": "an event", "context: HookContext": "a context", "state: WorkerState": "a state"}


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of a kit, by what they are told of; one may be of both kinds."""

    of_runs: tuple[RunHook, ...] = ()
    of_busyness: tuple[BusyHook, ...] = ()


def checked_hooks(hooks: object) -> Hooks:
    """
    Refuse what would never be called.

    Raises:
        InvalidHook: it is no hook, or has a public method that nothing calls.
    """
    if not isinstance(hooks, Iterable):
        name = hooks.__name__ if isinstance(hooks, type) else type(hooks).__name__
        raise InvalidHook(f"hooks is a list of hooks: hooks=[{name}()], got {hooks!r}")
    of_runs: list[RunHook] = []
    of_busyness: list[BusyHook] = []
    for hook in hooks:
        _check(hook)
        if isinstance(hook, RunHook):
            of_runs.append(hook)
        if isinstance(hook, BusyHook):
            of_busyness.append(hook)
    return Hooks(tuple(of_runs), tuple(of_busyness))


def _check(hook: object) -> None:
    kind = hook if isinstance(hook, type) else type(hook)
    if isinstance(hook, type) or not isinstance(hook, RunHook | BusyHook):
        is_class = isinstance(hook, type) and issubclass(hook, RunHook | BusyHook)
        mend = f"{kind.__name__}()" if is_class else "an object of it"
        raise InvalidHook(
            f"{hook!r} is no hook; derive a class from batchkit.hooks.RunHook or BusyHook and give {mend}"
        )
    known = {
        **(_RUN_METHODS if isinstance(hook, RunHook) else {}),
        **(_BUSY_METHODS if isinstance(hook, BusyHook) else {}),
    }
    public = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]
    wrong = [name for name in public if name not in known]
    if wrong and BusyHook not in kind.__mro__ and RunHook not in kind.__mro__:
        wrong = []  # what has the methods of a hook without being derived from one may have others, too
    if wrong:
        raise InvalidHook(
            f"nothing calls {kind.__name__}.{wrong[0]}: the methods of a hook are {', '.join(known)}; "
            f"let the names of its other methods begin with an underscore"
        )
    for name, argument in known.items():
        _check_method(kind.__name__, name, getattr(hook, name), argument)


def _check_method(kind: str, name: str, method: object, argument: str) -> None:
    if not callable(method) or inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method):
        raise InvalidHook(f"{kind}.{name} is a coroutine or a generator, so calling it would do nothing")
    try:
        inspect.signature(method).bind(*([None] if argument else []))
    except TypeError:
        what, given = ("nothing", "self") if not argument else (_ARTICLES[argument], f"self, {argument}")
        raise InvalidHook(f"{kind}.{name} cannot be called with {what}; write `def {name}({given})`") from None
