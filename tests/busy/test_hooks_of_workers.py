"""Busy hooks in real workers: who calls them, when, and what becomes of runs where they go wrong."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.busy.conftest import Fleet


def _is_idle_again(told: list[dict[str, Any]]) -> bool:
    changes = [each for each in told if each["method"] == "changed"]
    was_busy = any(each["protected"] + each["interruptible"] for each in changes)
    return was_busy and not changes[-1]["protected"] + changes[-1]["interruptible"]


def test_a_hook_is_called_in_the_main_process_at_the_edges_of_being_busy(fleet: Fleet):
    worker = fleet.worker()
    fleet.wait_told(lambda told: [each for each in told if each["method"] == "begin"], "that the worker begins")
    # For longer than a worker stays protected to the outside after its first chunk.
    run = fleet.start("count", pause=0.7)
    fleet.check(run)
    fleet.wait_told(_is_idle_again, "that the worker is idle again")
    worker.send(signal.SIGTERM)
    worker.wait()
    told = fleet.told()
    assert {worker.pid} == {each["pid"] for each in told}, "the hook was called in another process"
    assert ("begin", "end") == (told[0]["method"], told[-1]["method"])
    states = [each for each in told if "sequence" in each]
    assert sorted(each["sequence"] for each in states) == [each["sequence"] for each in states]
    assert {f"pod-1:{worker.pid}"} == {each["worker"] for each in states}
    # The first chunk of the first run is one of which nothing is known; the others are.
    changes = [each for each in told if each["method"] == "changed"]
    assert [(0, 0), (1, 0)] == [(each["protected"], each["interruptible"]) for each in changes[:2]]
    assert any(each["interruptible"] for each in states)


def test_a_child_that_is_killed_is_not_busy_any_more(fleet: Fleet):
    fleet.worker(slots=2)
    run = fleet.start("must-stay", pause=1.0)
    fleet.wait_told(lambda told: any(each.get("protected") for each in told), "that it is protected")
    (held,) = fleet.wait_busy(lambda busy: busy.slices, "nothing is held").slices
    pid = int(held.worker.rpartition(":")[2])
    main = {worker.pid for worker in fleet.crew.workers}
    assert not main & {pid}, "it is the child that works"
    os.kill(pid, signal.SIGKILL)
    fleet.check(run)


@pytest.mark.parametrize("hook", ["Failing", "Hanging", "Slow"])
def test_a_hook_that_goes_wrong_changes_no_run(fleet: Fleet):
    fleet.worker()
    fleet.check(fleet.start("must-stay", pause=0.02), fleet.start("count", pause=0.02))
    assert fleet.told("protect") or fleet.told("changed"), "it was not even called"


@pytest.mark.parametrize("hook", ["Granting"])
def test_what_must_not_be_stopped_is_claimed_once_the_platform_has_granted_it(fleet: Fleet):
    fleet.worker()
    run = fleet.start("must-stay", pause=0.05)
    fleet.check(run)
    granted = fleet.told("protect")[0]["at"]
    assert run.started_at is not None
    assert granted <= run.started_at.timestamp()


@pytest.mark.parametrize("hook", ["Refusing"])
def test_what_the_platform_refuses_is_left_to_other_workers(fleet: Fleet):
    fleet.worker()
    run = fleet.start("must-stay", pause=0.02)
    fleet.wait_told(lambda told: any(each["method"] == "protect" for each in told), "that it is asked for")
    assert None is run.refresh().started_at
    fleet.worker(env={"TEST_HOOK": "tests.busy.recorder:Granting"})
    fleet.check(run)


def test_a_worker_that_is_asked_to_stop_tells_of_it_while_it_still_works(fleet: Fleet):
    worker = fleet.worker(slots=2)
    run = fleet.start("must-stay", first=6.0)
    fleet.wait_told(lambda told: any(each.get("protected") for each in told), "that it is protected")
    worker.send(signal.SIGTERM)
    worker.wait()
    (first, *_) = [each for each in fleet.told("changed") if each["is_stopping"]]
    assert (True, 1) == (first["is_draining"], first["protected"]), "it was told of too late"
    assert not any(each.get("is_stopping") for each in fleet.told() if each["at"] < first["at"])
    fleet.worker()
    fleet.check(run)
