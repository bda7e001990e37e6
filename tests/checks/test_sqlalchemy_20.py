"""The same code on SQLAlchemy 2.0, whose types differ from 2.1's: for type checkers, and when it runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def python_with_20(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a Python whose SQLAlchemy is 2.0 and whose other packages are ours."""
    if version("sqlalchemy").startswith("2.0"):
        return Path(sys.executable)
    folder = tmp_path_factory.mktemp("sqlalchemy20")
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    _run(sys.executable, "-m", "pip", "install", "-q", "--target", packages, "sqlalchemy>=2.0,<2.1")
    # What is listed here comes behind the folder itself, so that 2.0 is found first.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{_ROOT}\n")
    assert "2.0." in _run(python, "-c", "import sqlalchemy; print(sqlalchemy.__version__)")
    return python


@pytest.mark.quality
@pytest.mark.timeout(300)
def test_type_checkers_agree_on_sqlalchemy_20(python_with_20: Path):
    _run(_SCRIPTS / "pyright", "--pythonpath", python_with_20)
    # Silent about our own files: their types are checked against the newest SQLAlchemy.
    _run(_SCRIPTS / "mypy", "--python-executable", python_with_20, "--follow-imports=silent", "tests/typing")


@pytest.mark.timeout(300)
def test_chunks_and_sources_work_on_sqlalchemy_20(python_with_20: Path):
    said = _run(python_with_20, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/slices", "tests/unit/sources")
    assert " passed" in said.splitlines()[-1]


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{command} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout
