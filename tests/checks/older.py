"""A Python whose packages are ours, but for some that are older."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def older_python(folder: Path, *requirements: str) -> Path:
    """Make it in *folder*."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "-q", "--target", packages, *requirements)
    # What is listed here comes behind the folder itself, so that the older ones are found first.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return folder / "bin" / "python"


def run(*command: str | Path) -> str:
    """Run a command in the project's folder and give what it printed; the test fails where it does."""
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{command} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout
