"""What the pages on hooks, draining and platforms show can be used as it is written."""

from __future__ import annotations

import configparser
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from batchkit.cli import app
from batchkit.contrib.ecs import TaskProtection
from batchkit.contrib.sentinel import SentinelFile
from batchkit.contrib.systemd import Notify

_DOCS = Path(__file__).parents[2] / "docs"
_RECIPES = [*sorted((_DOCS / "platforms").glob("*.md")), *sorted((_DOCS / "hooks").glob("*.md")), _DOCS / "draining.md"]


def _blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(("page", "hook"), [("ecs", TaskProtection), ("sentinel", SentinelFile), ("systemd", Notify)])
def test_the_kit_of_a_page_is_built_as_it_is_written(page: str, hook: type, sqlite_url: str):
    (block,) = _blocks(_DOCS / "hooks" / f"{page}.md", "python")
    names: dict[str, Any] = {}
    exec(block.replace("postgresql+psycopg://localhost/app", sqlite_url), names)  # noqa: S102  our own page
    with closing(names["kit"]) as kit:
        assert [hook] == [type(each) for each in kit._busy_hooks]  # noqa: SLF001  nobody else asks for them


@pytest.mark.parametrize("page", _RECIPES, ids=lambda page: page.stem)
def test_what_is_set_elsewhere_can_be_read_there(page: Path):
    for block in _blocks(page, "json"):
        assert json.loads(block)
    for block in _blocks(page, "ini"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.read_string(block)
        assert "notify" == unit["Service"]["Type"]


@pytest.mark.parametrize("page", _RECIPES, ids=lambda page: page.stem)
def test_the_commands_of_a_recipe_are_commands(page: Path):
    known = typer.main.get_command(app)
    commands: dict[str, Any] = known.commands  # type: ignore[attr-defined]
    for name, options in re.findall(r"batchkit (drain|wait-idle|busy)((?: --?[a-z-]+(?: [\w.]+)?)*)", page.read_text()):
        offered = {option for each in commands[name].params for option in each.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= offered, (name, options)
