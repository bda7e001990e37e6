"""The wheel, installed where the sources are not."""

from __future__ import annotations

import importlib.metadata
import os
import sqlite3
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# It is built and installed once.
pytestmark = pytest.mark.xdist_group("wheel")

APP = """\
from batchkit import BatchKit, Chunk, batched, span

kit = BatchKit("sqlite:///app.db")


def numbers():
    return span(0, 1000)


@batched(numbers, chunk_size=100)
def count(chunk: Chunk[int]) -> None:
    print(len(chunk))
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, install it with what it requires and nothing else, and give the new venv's scripts."""
    built = tmp_path_factory.mktemp("built")
    # The wheel is built from the sdist, so that this tells what the sdist lacks, too.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(ROOT)], cwd=built)
    (wheel,) = built.glob("*.whl")
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, symlinks=True, with_pip=False)
    scripts = home / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(scripts / "python")]
    run([*pip, "install", "--no-deps", "--no-index", str(wheel)], cwd=built)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (metadata,) = site_packages.glob("batchkit_jobs-*.dist-info")
    link_requirements(importlib.metadata.Distribution.at(metadata), site_packages)
    return scripts


def test_an_installed_wheel_migrates_a_database_and_runs_a_job(installed: Path, tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    where = run([str(installed / "python"), "-c", "import batchkit; print(batchkit.__file__)"], cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)

    batchkit = [str(installed / "batchkit"), "-A", "app:kit"]
    run([*batchkit, "db", "upgrade"], cwd=tmp_path)
    run([*batchkit, "run", "app.count"], cwd=tmp_path)

    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        assert [("succeeded",)] == database.execute("SELECT state FROM batchkit_run").fetchall()
        assert [(1000,)] == database.execute("SELECT sum(done) FROM batchkit_partition").fetchall()


def test_an_installed_wheel_is_known_to_be_typed(installed: Path, tmp_path: Path):
    code = "import importlib.resources as r; print(r.files('batchkit').joinpath('py.typed').is_file())"

    assert "True" == run([str(installed / "python"), "-c", code], cwd=tmp_path).strip()


def run(command: list[str], *, cwd: Path) -> str:
    """Run *command* as somebody would who has no sources, and give what it printed."""
    ours = ("BATCHKIT_", "PYTHON", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with code {result.returncode}:\n{result.stdout}", pytrace=False)
    return result.stdout


def link_requirements(distribution: importlib.metadata.Distribution, site_packages: Path) -> None:
    """
    Make what *distribution* requires, and what that requires, importable from *site_packages*.

    It is linked from where the tests run, which is quick and needs no network. What is only there for the tests is not
    linked, so that a requirement which pyproject.toml forgets is missed here.
    """
    for requirement in requirements(distribution, seen=set()):
        for name in {Path(file).parts[0] for file in requirement.files or []}:
            there, here = Path(str(requirement.locate_file(name))), site_packages / name
            # ".." leads to scripts; the modules of two distributions may share a folder of caches.
            if name not in {"..", "__pycache__"} and not here.exists():
                here.symlink_to(there)


def requirements(
    distribution: importlib.metadata.Distribution, *, seen: set[str], extras: frozenset[str] = frozenset()
) -> Iterator[importlib.metadata.Distribution]:
    """Give the distributions that *distribution* requires here with *extras*, and those that they require."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        key = f"{canonicalize_name(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if not wanted or key in seen:
            continue
        seen.add(key)
        found = importlib.metadata.distribution(requirement.name)
        yield found
        yield from requirements(found, seen=seen, extras=frozenset(requirement.extras))
