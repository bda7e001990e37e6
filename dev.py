#!/usr/bin/env python3
"""
Run batchkit's demo, tests and benchmarks from a fresh checkout.

    python3 dev.py setup              make .venv with batchkit and all its tools in it
    python3 dev.py test [ARGS...]     run the tests; ARGS are pytest's, such as tests/unit or -k lease or -n 0
    python3 dev.py demo [ARGS...]     run examples/normalize_emails.py
    python3 dev.py bench [ARGS...]    run the benchmarks; ARGS are sections, such as safety or peers, and --quick
    python3 dev.py simulate [ARGS...] simulate a fleet of a thousand workers (docs/scale.md)

Each begins with setup, which does nothing where it was done before. Python 3.10 or newer is all that must be there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Only dev.py writes it: first that the .venv is unfinished, at the very end what it was made from.
STAMP = VENV / "made-by-dev.py.txt"
UNFINISHED = "unfinished"
# Where dev.py itself runs in the .venv, the Python that the .venv was made with, since that one outlives it.
BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable

OLDEST_PYTHON = (3, 10)
USAGE = 2

COMMANDS = {
    "setup": None,
    # Most tests wait for processes that they have started, so more of them than processors.
    "test": ["-m", "pytest", "-n", "6", "--dist", "loadgroup"],
    "demo": ["-m", "examples.normalize_emails"],
    "bench": ["-m", "benchmarks"],
    "simulate": ["-m", "benchmarks.fleet"],
}


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    if sys.version_info < OLDEST_PYTHON:
        stop(f"batchkit needs Python 3.10 or newer; this is Python {sys.version.split()[0]}, at {sys.executable}")
    if not arguments or arguments[0] not in COMMANDS:
        print((__doc__ or "").strip(), file=sys.stderr)
        sys.exit(USAGE)
    set_up()
    command = COMMANDS[arguments[0]]
    if command is not None:
        become([str(PYTHON), *command, *arguments[1:]])


def set_up() -> None:
    """Make .venv, unless it is there and was made from the same pyproject.toml by the same Python."""
    interpreter, requirements = wanted()
    found = STAMP.read_text().splitlines() if STAMP.exists() else []
    if found == [interpreter, requirements]:
        return
    if VENV.exists() and any(VENV.iterdir()) and not STAMP.exists():
        stop(f"{VENV} was not made by dev.py; move it away, or remove it, and try again")
    if found[:1] != [interpreter]:
        make_venv()
    STAMP.write_text(UNFINISHED)
    install()
    STAMP.write_text(f"{interpreter}\n{requirements}\n")


def wanted() -> tuple[str, str]:
    """Tell what a finished .venv was made from: the Python and the place, then the requirements."""
    # The place counts, since a .venv that was copied or moved still points to where it was made.
    interpreter = f"Python {sys.version.split()[0]} from {sys.base_prefix} for {ROOT}"
    requirements = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return interpreter, f"pyproject.toml {requirements}"


def make_venv() -> None:
    """Make an empty .venv, in place of one that was never finished or belongs to another Python."""
    require_ensurepip()
    say(f"Making {VENV} with Python {sys.version.split()[0]}")
    if VENV.exists():
        # Last of all goes the stamp, which is what says that the rest may be removed.
        for entry in VENV.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != STAMP:
                entry.unlink()
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(UNFINISHED)
    run([BASE_PYTHON, "-m", "venv", str(VENV)])


def require_ensurepip() -> None:
    """See to it that `python -m venv` can work; Debian and Ubuntu keep a part of it in a package of its own."""
    if venv_works():
        return
    commands = [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "python3-venv"]]
    by_hand = " && ".join(shlex.join(command) for command in commands)
    say(f"{sys.executable} cannot make virtual environments: its module ensurepip is missing")
    if shutil.which("apt-get") is None:
        stop("install what your system calls Python's venv and pip, and try again")
    if os.geteuid() != 0:
        stop(f"Debian and Ubuntu have it in python3-venv; install it and try again:\n    sudo sh -c '{by_hand}'")
    say(f"Installing it: {by_hand}")
    for command in commands:
        run(command, environment={"DEBIAN_FRONTEND": "noninteractive"})
    importlib.invalidate_caches()
    if not venv_works():
        stop(f"python3-venv is for another Python than {sys.executable}; use /usr/bin/python3 dev.py instead")


def venv_works() -> bool:
    """Tell whether this Python has the modules that `python -m venv` needs."""
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def install() -> None:
    """Install batchkit, as it stands in this folder, and its tools."""
    say("Installing batchkit and its tools into it (needs the package index; about a minute the first time)")
    started = time.monotonic()
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    run([*pip, "--editable", f"{ROOT}[dev,postgres,mysql]"])
    say(f"Installed in {time.monotonic() - started:.0f} s")


def run(command: list[str], *, environment: dict[str, str] | None = None) -> None:
    """Run *command* and show what it printed only if it fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if result.returncode != 0:
            output.seek(0)
            print(output.read(), file=sys.stderr)
            stop(f"failed with exit code {result.returncode}: {shlex.join(command)}", code=1)


def become(command: list[str]) -> None:
    """Go on as *command*, so that its signals and its exit code are ours."""
    say(f"Running {shlex.join([str(Path(command[0]).relative_to(ROOT)), *command[1:]])}")
    os.chdir(ROOT)
    # Tests start more than a thousand Pythons, and with this each would compile all of batchkit anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.execv(command[0], command)


def say(text: str) -> None:
    """Tell the person what is being done."""
    print(f"dev.py: {text}", flush=True)


def stop(text: str, *, code: int = USAGE) -> None:
    """End with *text* as the reason."""
    print(f"dev.py: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
