"""Simulated fleets: the real store on a virtual clock, with deploys, kills and a slow database, item by item."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchkit.states import RunState
from benchmarks.fleet.fleet import Fleet, Setting, fleet
from benchmarks.fleet.working import Job

_ITEMS = 24_000
_JOB = Job(item_seconds=0.01, chunk_size=100, lease=15, slice_time=10)
_SMALL = Setting(
    workers=8, per_instance=4, partitions=12, items=_ITEMS, job=_JOB, has_ledger=True, sweeps_apart=0.0, boots=(1, 4)
)
_POLLING = replace(_SMALL, queue="polling")
_LONGEST = 3600.0


def _is_whole(made: Fleet) -> bool:
    """Tell whether each item of each run was written once: what was written joins up, and no chunk overlaps another."""
    ledger = made.around.ledger
    assert ledger is not None
    return all(ledger.spans(run_id) == [(0, _ITEMS)] for run_id in made.runs)


def _finish(made: Fleet) -> None:
    """Work all runs to their ends, and hold store, ledger and tally against each other."""
    made.run(until=_LONGEST)
    made.check()
    assert {RunState.SUCCEEDED: len(made.runs)} == made.states()
    assert _is_whole(made)
    assert _ITEMS * len(made.runs) == made.tally.items


@pytest.mark.parametrize("setting", [_SMALL, _POLLING], ids=["messages", "polling"])
def test_deploys_and_kills_of_a_fleet_lose_and_double_nothing(setting: Setting):
    with fleet(replace(setting, deploy_every=16, kills_per_hour=600)) as made:
        made.start()
        _finish(made)
        assert made.deploys
        assert made.kills
        assert made.tally.takeovers["killed"]


@pytest.mark.parametrize("setting", [_SMALL, _POLLING], ids=["messages", "polling"])
def test_several_runs_of_a_fleet_end(setting: Setting):
    with fleet(replace(setting, runs=2, partitions=4, deploy_every=20)) as made:
        made.start()
        _finish(made)


@pytest.mark.parametrize("setting", [_SMALL, _POLLING], ids=["messages", "polling"])
def test_a_fleet_outlives_a_database_that_hardly_answers(setting: Setting):
    with fleet(setting) as made:
        made.start()
        made.run(until=12)
        # A chunk takes longer than its lease, which is renewed all the same, and claims time out.
        made.database.processors.slow_down(20_000)
        made.run(until=90)
        made.database.processors.slow_down(1)
        _finish(made)


def test_a_kill_undoes_the_chunk_in_flight_and_no_more():
    with fleet(_SMALL) as made:
        made.start()
        made.run(until=12)
        for instance in list(made.instances):
            made.kill(instance)
        assert 0 < made.tally.redone <= _SMALL.workers * 100
        _finish(made)


def test_a_stop_within_the_grace_undoes_nothing():
    with fleet(_SMALL) as made:
        made.start()
        made.run(until=12)
        made.deploy()
        _finish(made)
        assert 0 == made.tally.redone


def test_a_chunk_that_outlives_the_grace_is_undone_and_its_partition_given_back():
    long = replace(_JOB, chunk_size=1500)
    with fleet(replace(_SMALL, job=long, grace=10)) as made:
        made.start()
        made.run(until=12)
        made.deploy()
        _finish(made)
        assert 0 < made.tally.endings["cut"]
        assert "killed" not in made.tally.endings


def test_workers_that_poll_and_come_together_seldom_refuse_each_other():
    at_once = replace(_POLLING, workers=96, partitions=115, items=10**7, has_ledger=False, boots=(1, 1))
    with fleet(at_once) as made:
        made.start()
        made.run(until=5)
        assert 96 == made.working
        # One each, since all see the same partition first, and some more by chance.
        assert made.database.calls["claim_refused"] <= 2 * 96
