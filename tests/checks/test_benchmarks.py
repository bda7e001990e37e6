"""The benchmarks run: what they measure is worked whole. Those who need packages of their own are left to `bench`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import SECTIONS
from benchmarks.peers.roster import PEERS, Peer
from benchmarks.peers.rows import Work
from benchmarks.peers.scene import Scene, Servers, servers

# Its servers are started once.
pytestmark = pytest.mark.xdist_group("benchmarks")
#: Each way of starting: here, with workers, and with something beside them.
_SOME = [
    each
    for each in PEERS
    if each.label in {"batchkit, called in place", "batchkit, 2 partitions on 2 workers", "batchkit on RQ"}
]
_WORK = Work(4, 5)


@pytest.fixture(scope="module")
def at() -> Iterator[Servers]:
    with servers(Path(sys.executable)) as made:
        yield made


@pytest.mark.parametrize("peer", _SOME, ids=[each.label for each in _SOME])
def test_a_benchmark_works_each_row_once(at: Servers, peer: Peer):
    scene = Scene(at, peer)
    try:
        starter = scene.starter()
        scene.workers()
        scene.fill(_WORK)
        timed = scene.run(starter, _WORK)

        assert (0, 0) == scene.lost_and_repeated(_WORK)
        assert 0 < timed.first <= timed.total
    finally:
        scene.close()


@pytest.mark.parametrize("peer", PEERS, ids=[each.label for each in PEERS])
def test_the_app_of_a_system_is_there(peer: Peer):
    assert importlib.util.find_spec(peer.app) is not None


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_of_figures_has_each_section(section: str):
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert f"bench {section}" in page
