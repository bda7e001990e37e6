"""An environment for the systems that batchkit is measured against, so that what they pin touches no other."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / ".venv-peers"
_PYTHON = _FOLDER / "bin" / "python"
_STAMP = _FOLDER / "made-for.txt"
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_VERSIONS = """
import importlib.metadata, json, sys
found = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
print(json.dumps({name: found.get(name) for name in sys.argv[1:]}))
"""


def make() -> Path:
    """Give its Python; make it where it is not there, or was made from other requirements."""
    wanted = _wanted()
    if _STAMP.exists() and _STAMP.read_text() == wanted:
        return _PYTHON
    print("Making .venv-peers with the systems to measure against (needs the package index; about half a minute)")
    shutil.rmtree(_FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(_FOLDER)], check=True)
    _install("--editable", f"{_ROOT}[postgres,celery,rq]")
    if not _install_all():
        # One that cannot be had must not keep the others out: its rows will say so.
        for line in _REQUIREMENTS.read_text().splitlines():
            if line and not line.startswith("#") and not _installed(line):
                print(f"{line} cannot be installed")
    _STAMP.write_text(wanted)
    return _PYTHON


def versions(python: Path, packages: Collection[str]) -> dict[str, str | None]:
    """Give the versions that are there, None for a package that is not."""
    said = subprocess.check_output([str(python), "-c", _VERSIONS, *packages], text=True)
    found: dict[str, str | None] = json.loads(said)
    return found


def _wanted() -> str:
    made_from = (_REQUIREMENTS, _ROOT / "pyproject.toml")
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in made_from)).hexdigest()
    return f"{sys.version} {_ROOT} {digest}\n"


def _install_all() -> bool:
    return _installed("-r", str(_REQUIREMENTS))


def _installed(*what: str) -> bool:
    try:
        _install(*what)
    except subprocess.CalledProcessError as error:
        print(error.stderr.decode(errors="replace")[-2000:], file=sys.stderr)
        return False
    return True


def _install(*what: str) -> None:
    pip = [str(_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, *what], check=True, stdin=subprocess.DEVNULL, capture_output=True)
