"""Server programs from Debian's packages, unpacked beside the tests' own Python: nothing is installed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

_SECONDS = 300


class PackagesNotFoundError(Exception):
    """Raised when this machine cannot get a package."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(f"Debian's package {package} cannot be had here: {reason}")


def unpacked(package: str) -> Path:
    """
    Give a folder in which *package* and what it needs, and is not installed, are unpacked.

    Raises:
        PackagesNotFoundError: this is no Debian, or its packages are out of reach.
    """
    place = Path(sys.prefix) / "batchkit-servers"
    place.mkdir(exist_ok=True)
    root = place / package
    with (place / f"{package}.lock").open("w") as lock:
        # Tests run in several processes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _unpack(package, root, place / f"{package}.parts")
    return root


def _unpack(package: str, root: Path, parts: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise PackagesNotFoundError(package, "there is no apt-get")
    for folder in (parts, parts / "lists" / "partial", parts / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    options: list[str] = []
    wanted = _wanted(package, options)
    if not wanted:
        # The lists of packages are missing or old; lists of our own need no rights.
        options = ["-o", f"Dir::State::lists={parts / 'lists'}", "-o", f"Dir::Cache={parts / 'cache'}"]
        _run(package, "apt-get", *options, "-q", "update", cwd=parts)
        wanted = _wanted(package, options)
    if not wanted:
        raise PackagesNotFoundError(package, "apt-get does not know it")
    _run(package, "apt-get", *options, "-q", "download", *wanted, cwd=parts)
    unfinished = parts / "root"
    for archive in parts.glob("*.deb"):
        _run(package, "dpkg", "-x", str(archive), str(unfinished), cwd=parts)
    unfinished.rename(root)
    shutil.rmtree(parts)


def _wanted(package: str, options: list[str]) -> list[str]:
    """Give the packages that installing *package* would bring."""
    command = ["apt-get", *options, "install", "--simulate", "--no-install-recommends", "--reinstall", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Inst ")]


def _run(package: str, *command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise PackagesNotFoundError(package, f"{' '.join(command[:3])} ... said {done.stderr[-500:]}")
