"""The checkers, each as a test, so that one command runs everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent

CHECKERS = {
    "ruff-check": [SCRIPTS / "ruff", "check", "."],
    "ruff-format": [SCRIPTS / "ruff", "format", "--check", "--diff", "."],
    "mypy": [SCRIPTS / "mypy"],
    # The public face, as a user's type checker sees it.
    "pyright": [SCRIPTS / "pyright", "--pythonpath", sys.executable],
    "import-linter": [SCRIPTS / "lint-imports"],
}


@pytest.mark.quality
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", CHECKERS.values(), ids=CHECKERS.keys())
def test_a_checker_finds_nothing(command: list[str | Path]):
    result = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    if result.returncode != 0:
        pytest.fail(f"{Path(command[0]).name} ended with code {result.returncode}:\n{result.stdout}", pytrace=False)
