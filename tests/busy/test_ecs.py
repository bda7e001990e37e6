"""ECS task protection, against an agent that answers as the one of ECS does, and as it does on its bad days."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from batchkit.busy import Busy
from batchkit.contrib.ecs import TaskProtection
from batchkit.hooks import HookContext, WorkerState
from tests.busy.agent import PATH, Agent, agent_of_ecs
from tests.busy.conftest import ITEMS, Fleet
from tests.waiting import eventually

IDLE = WorkerState("pod-1:7", "pod-1", 0, 0, None, is_draining=False, sequence=1)
PROTECTED = replace(IDLE, protected=1)


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Give an agent that grants."""
    with agent_of_ecs() as made:
        yield made


@pytest.fixture
def settings(agent: Agent) -> dict[str, str]:
    """Have workers protect their task."""
    return {"TEST_HOOK": "batchkit.contrib.ecs:TaskProtection", "TEST_HOOK_ARGUMENT": agent.uri}


# The hook by itself


def _begun(agent: Agent) -> TaskProtection:
    hook = TaskProtection(agent.uri)
    hook.begin(HookContext("pod-1:7", "pod-1", "local", _nobody, max_protect=None, repeat_seconds=10.0))
    agent.asked.clear()
    return hook


def _nobody() -> Busy:
    return Busy(datetime.now(timezone.utc), (), (), ())


@pytest.mark.parametrize(
    ("answers", "granted", "advice"),
    [
        ("grant", True, None),
        ("refuse", False, "DEPLOYMENT_BLOCKED"),
        ("standalone", None, "belongs to no service"),
        ("400", None, "ecs:UpdateTaskProtection"),
        ("403", None, "taskRoleArn"),
        ("404", None, "update the agent"),
        ("500", None, "asked again"),
        ("504", None, "reaches the ECS endpoint"),
        ("418", None, "did not answer"),
        ("hang", None, "did not answer"),
        ("close", None, "did not answer"),
        ("malformed", None, "nobody knows"),
    ],
)
def test_only_what_says_that_the_task_is_protected_is_a_grant(
    agent: Agent, caplog: pytest.LogCaptureFixture, answers: str, granted: bool | None, advice: str | None
):
    hook = _begun(agent)
    agent.answers = answers
    with caplog.at_level(logging.WARNING, logger="batchkit"):
        assert granted is hook.protect(PROTECTED)
        hook.changed(replace(PROTECTED, sequence=2))
        assert granted is hook.protect(replace(PROTECTED, sequence=3))
    assert {PATH} == {each["path"] for each in agent.asked}
    warnings = [each.getMessage() for each in caplog.records]
    assert ([] if advice is None else [True]) == [str(advice) in each for each in warnings], warnings


@pytest.mark.parametrize(
    ("shortest", "remaining", "minutes"),
    [(300, None, 5), (300, 1.0, 5), (60, 31.0, 2), (timedelta(minutes=1), 3600.0, 120), (60, 1e6, 2880), (61, None, 2)],
)
def test_a_protection_lasts_for_twice_the_time_to_the_next_checkpoint(
    agent: Agent, shortest: float | timedelta, remaining: float | None, minutes: int
):
    hook = TaskProtection(agent.uri, shortest=shortest)
    assert hook.protect(replace(PROTECTED, remaining=remaining))
    assert [minutes] == [each["ExpiresInMinutes"] for each in agent.asked]


def test_a_protection_is_renewed_at_half_of_its_time_and_not_with_each_claim(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
):
    now = 1000.0
    monkeypatch.setattr("batchkit.contrib.ecs.time.monotonic", lambda: now)
    hook = _begun(agent)
    for number in range(5):
        assert hook.protect(replace(PROTECTED, sequence=number))
        hook.changed(replace(PROTECTED, sequence=number))
    assert 1 == len(agent.asked)
    now += 149.0
    hook.repeated(replace(PROTECTED, sequence=6))
    assert 1 == len(agent.asked)
    now += 1.0
    hook.repeated(replace(PROTECTED, sequence=7))
    assert 2 == len(agent.asked)
    hook.changed(replace(IDLE, sequence=8))
    hook.repeated(replace(IDLE, sequence=9))
    assert [True, False] == agent.changes()
    assert 3 == len(agent.asked)


def test_a_state_from_before_the_claim_takes_nothing_back(agent: Agent):
    hook = _begun(agent)
    assert hook.protect(replace(PROTECTED, sequence=8))
    hook.changed(replace(IDLE, sequence=7))
    assert [True] == agent.changes()


def test_what_may_have_been_granted_is_taken_back(agent: Agent):
    hook = _begun(agent)
    agent.answers = "close"
    assert hook.protect(PROTECTED) is None
    hook.changed(replace(IDLE, sequence=2))
    agent.answers = "grant"
    hook.repeated(replace(IDLE, sequence=3))
    hook.repeated(replace(IDLE, sequence=4))
    assert [True, False, False] == [each["ProtectionEnabled"] for each in agent.asked]


def test_where_there_is_no_agent_nothing_is_protected(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    hook = TaskProtection()
    hook.begin(HookContext("pod-1:7", "pod-1", "local", _nobody, max_protect=None, repeat_seconds=10.0))
    assert hook.protect(PROTECTED) is None
    hook.changed(PROTECTED)
    hook.end()
    assert "no ECS task" in caplog.text


def test_a_protection_that_ecs_cannot_give_is_refused_at_once():
    for wrong in (0, 59, timedelta(days=3)):
        with pytest.raises(ValueError, match="shortest"):
            TaskProtection("http://127.0.0.1", shortest=wrong)


# Workers


def _wait_for(fleet: Fleet, agent: Agent, changes: list[bool]) -> None:
    eventually(
        lambda: agent.changes()[-len(changes) :] == changes,
        within=60,
        message=lambda: f"{agent.asked}\n{fleet.crew.logs()}",
    )


def test_a_worker_claims_once_its_task_is_protected_and_takes_that_back_after_it(fleet: Fleet, agent: Agent):
    fleet.worker()
    agent.asked.clear()
    run = fleet.start("must-stay", pause=0.05)
    fleet.check(run)
    granted = next(each for each in agent.asked if each["ProtectionEnabled"])
    assert run.started_at is not None
    assert granted["at"] <= run.started_at.timestamp()
    assert 5 == granted["ExpiresInMinutes"]
    _wait_for(fleet, agent, [True, False])


def test_where_nobody_knows_of_a_protection_the_work_is_done_all_the_same(fleet: Fleet, agent: Agent):
    agent.answers = "hang"
    fleet.worker()
    fleet.check(fleet.start("must-stay", pause=0.02), fleet.start("count", pause=0.02))
    assert any(each["ProtectionEnabled"] for each in agent.asked)


def test_what_ecs_refuses_is_left_to_another_task(fleet: Fleet, agent: Agent):
    agent.answers = "refuse"
    refused = fleet.worker()
    run = fleet.start("must-stay", pause=0.02)
    eventually(lambda: any(each["ProtectionEnabled"] for each in agent.asked), within=60, message=fleet.crew.logs)
    assert run.refresh().started_at is None
    with agent_of_ecs() as other:
        fleet.worker(env={"TEST_HOOK_ARGUMENT": other.uri, "BATCHKIT_INSTANCE": "pod-2"})
        fleet.check(run)
    assert refused.is_alive


def test_a_worker_that_is_killed_between_protection_and_claim_holds_nothing_for_long(fleet: Fleet, agent: Agent):
    worker = fleet.worker()

    def kill(body: dict[str, object]) -> None:
        if body["ProtectionEnabled"]:
            worker.send_all(signal.SIGKILL)

    agent.on_asked = kill
    run = fleet.start("must-stay", pause=0.02)
    worker.wait()
    (only,) = [each for each in agent.asked if each["ProtectionEnabled"]]
    assert only["ExpiresInMinutes"] <= 5, "it would protect a task that does nothing"
    assert run.refresh().started_at is None
    agent.on_asked = lambda _: None
    fleet.worker()
    fleet.check(run)


class TestMaxProtect:
    """Under a load that is protected all the time."""

    @pytest.fixture
    def settings(self, agent: Agent) -> dict[str, str]:
        return {
            "TEST_HOOK": "batchkit.contrib.ecs:TaskProtection",
            "TEST_HOOK_ARGUMENT": agent.uri,
            "TEST_MAX_PROTECT": "8",
        }

    def test_the_task_can_be_stopped_for_a_moment_though_chunks_are_long(self, fleet: Fleet, agent: Agent):
        fleet.worker()
        agent.asked.clear()
        # Longer than the break of two seconds that the whole fleet takes, which would end before the edge is shown.
        run = fleet.start("must-stay", pause=3.0)
        _wait_for(fleet, agent, [True, False])
        assert run.refresh().progress.done < ITEMS
        _wait_for(fleet, agent, [True, False, True])
        run.cancel()
