"""Fleets that are scaled down at random by their reports; `python -m tests.scale_down` does more of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.redis import RedisServer

_ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "rule"), [("celery", "granted"), ("rq", "instance")])
def test_a_fleet_that_is_scaled_down_loses_nothing_and_no_part_is_cut_short(
    kind: str, rule: str, redis_server: RedisServer, postgres_url: str
):
    command = [sys.executable, "-m", "tests.scale_down", "--kind", kind, "--rule", rule, "--stops", "6"]
    done = subprocess.run(
        [*command, "--workers", "3", "--minutes", "2", "--json"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert 0 == done.returncode, (result, done.stderr)
    assert result["stops"] >= 1, "nobody was stopped"
    assert (0, 0, 0, 0) == (result["lost"], result["doubled"], result["cut"], result["false_idle"])
