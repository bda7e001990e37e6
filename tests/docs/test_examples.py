"""Each example runs from an empty folder, ends well, and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SAYS = {
    "normalize_emails": "200,000 users are normalised, 0 are not",
    "import_csv": "50,000",
    "running_sum": "succeeded",
    "crawl": "4,000 charges, of 4,000",
    "export_multipart": "exact to the byte",
}


def test_every_example_is_run_here():
    names = {path.stem for path in (_ROOT / "examples").glob("*.py")} - {"__init__"}
    assert set(_SAYS) == names


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", _SAYS)
def test_an_example_runs_twice_in_an_empty_folder(name: str, tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BATCHKIT_")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", f"examples.{name}"],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        assert _SAYS[name] in done.stdout, done.stdout
