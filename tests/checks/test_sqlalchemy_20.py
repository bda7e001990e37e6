"""The same code on SQLAlchemy 2.0, whose types differ from 2.1's: for type checkers, and when it runs."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.checks.older import older_python, run

# Its Python is made once.
pytestmark = pytest.mark.xdist_group("sqlalchemy 2.0")
_SCRIPTS = Path(sys.executable).parent
#: What sessions, connections and results go through; not what kills processes or waits for leases.
_TESTS = (
    "tests/unit/sources",
    *(
        f"tests/slices/test_{name}.py"
        for name in ("at_least_once", "at_most_once", "each", "failures", "lost_commits", "odd_functions")
    ),
    *(f"tests/slices/test_{name}.py" for name in ("resumables", "slices", "starting", "trying_out")),
)


@pytest.fixture(scope="module")
def python_with_20(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a Python whose SQLAlchemy is 2.0 and whose other packages are ours."""
    if version("sqlalchemy").startswith("2.0"):
        return Path(sys.executable)
    python = older_python(tmp_path_factory.mktemp("sqlalchemy20"), "sqlalchemy>=2.0,<2.1")
    assert "2.0." in run(python, "-c", "import sqlalchemy; print(sqlalchemy.__version__)")
    return python


@pytest.mark.quality
@pytest.mark.timeout(300)
def test_type_checkers_agree_on_sqlalchemy_20(python_with_20: Path):
    run(_SCRIPTS / "pyright", "--pythonpath", python_with_20)
    # Silent about our own files: their types are checked against the newest SQLAlchemy.
    run(_SCRIPTS / "mypy", "--python-executable", python_with_20, "--follow-imports=silent", "tests/typing")


@pytest.mark.timeout(900)
def test_chunks_and_sources_work_on_sqlalchemy_20(python_with_20: Path):
    # What differs between releases is not the dialect: some files on PostgreSQL too, and nothing on MySQL.
    on_postgres = "test_slices or test_ended_transactions or test_chunk_costs or test_changed_jobs"
    which = f"not mysql and ({on_postgres} or not postgres)"
    options = ("-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup", "-k", which)
    said = run(python_with_20, "-m", "pytest", *options, *_TESTS)
    assert " passed" in said.splitlines()[-1]
