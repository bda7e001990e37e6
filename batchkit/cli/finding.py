"""Finding what a command line names: the kit, a job, a run."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from batchkit.app import BatchKit
from batchkit.cli.ending import UsageProblem, one_line
from batchkit.errors import BatchkitError, JobNotFound, RunNotFound
from batchkit.job import Definition
from batchkit.run import Run

_ID_LENGTH = 26
_SHORTEST_PART = 4
_NEWEST = 1000
_LISTED = 5


def find_kit(spec: str) -> tuple[BatchKit, str]:
    """
    Find the kit that `module:kit`, or `module` alone, stands for, and give it with its full spec.

    Raises:
        UsageProblem: it says which part of the spec is wrong, and what there is instead.
    """
    name, _, path = spec.partition(":")
    module = _import(name, spec)
    if not path:
        return _only_kit(module)
    found: object = module
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise UsageProblem(f"-A {spec}: {name} has no {path!r}; {_instead(module)}")
        found = getattr(found, attribute)
    if not isinstance(found, BatchKit):
        raise UsageProblem(f"-A {spec}: {path!r} is no BatchKit but a {type(found).__name__}; {_instead(module)}")
    return found, spec


def find_job(kit: BatchKit, name: str) -> Definition:
    """
    Find a job by its name, or by the last parts of it where one job only ends so.

    Raises:
        JobNotFound: no job is called so.
        UsageProblem: several are.
    """
    if name in kit.jobs:
        return kit.jobs[name]
    ending = [known for known in kit.jobs if known.endswith(f".{name}")]
    if not ending:
        raise JobNotFound(name, known=kit.jobs)
    if len(ending) > 1:
        raise UsageProblem(f"several jobs are called {name!r}; give more of the name: {', '.join(sorted(ending))}")
    return kit.jobs[ending[0]]


def find_run(kit: BatchKit, id_: str) -> Run:
    """
    Find a run by its id, or by a part that one of the newest runs only begins or ends with.

    Raises:
        RunNotFound: no run has this id.
        UsageProblem: the part is too short, or several runs have it.
    """
    id_ = id_.lower()
    if len(id_) >= _ID_LENGTH:
        return kit.run(id_)
    if len(id_) < _SHORTEST_PART:
        raise UsageProblem(f"{id_!r} is too short for a run's id: give {_SHORTEST_PART} characters of it or more")
    found = [run for run in kit.runs(limit=_NEWEST) if run.id.startswith(id_) or run.id.endswith(id_)]
    if not found:
        raise RunNotFound(id_)
    if len(found) > 1:
        some = ", ".join(run.id for run in found[:_LISTED])
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise UsageProblem(f"{id_!r} stands for {len(found)} runs: {some}{more}; the ends of ids differ most")
    return found[0]


def find_newest(kit: BatchKit) -> Run:
    """
    Find the run that was started last.

    Raises:
        UsageProblem: there is none.
    """
    newest = kit.runs(limit=1)
    if not newest:
        raise UsageProblem(f"there are no runs in {kit.database_url} yet")
    return newest[0]


def _import(name: str, spec: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise UsageProblem(f"-A {spec}: {name!r} is no name of a module; write -A package.module:kit, without .py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing == name or name.startswith(f"{missing}."):
            raise UsageProblem(
                f"-A {spec}: there is no module {missing!r}, neither here in {here} nor among the installed ones"
            ) from error
        raise _broken(name, spec, error) from error
    except BatchkitError:
        raise
    except Exception as error:
        raise _broken(name, spec, error) from error


def _broken(name: str, spec: str, error: Exception) -> UsageProblem:
    frames = traceback.extract_tb(error.__traceback__)
    # The last frames may be those of importlib, or of a library; the user's own file is the one to show.
    own = [frame for frame in frames if not frame.filename.startswith("<") and "site-packages" not in frame.filename]
    # A SyntaxError tells its place itself.
    tells_where = bool(own) and not isinstance(error, SyntaxError)
    where = f" ({own[-1].filename}:{own[-1].lineno})" if tells_where else ""
    return UsageProblem(
        f"-A {spec}: importing {name} failed: {type(error).__name__}: {one_line(error)}{where}; --traceback shows more"
    )


def _kits(module: ModuleType) -> dict[str, BatchKit]:
    return {name: value for name, value in vars(module).items() if isinstance(value, BatchKit)}


def _only_kit(module: ModuleType) -> tuple[BatchKit, str]:
    kits = _kits(module)
    if len({id(kit) for kit in kits.values()}) != 1:
        raise UsageProblem(f"-A {module.__name__}: {_instead(module)}")
    name, kit = next(iter(kits.items()))
    return kit, f"{module.__name__}:{name}"


def _instead(module: ModuleType) -> str:
    names = sorted(f"{module.__name__}:{name}" for name in _kits(module))
    if not names:
        return f"there is no BatchKit in {module.__name__}; make one there: kit = BatchKit(...)"
    return f"name one of the kits there: {', '.join(names)}"
