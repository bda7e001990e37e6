"""The pod's deletion cost: in bands, seldom, and without harm where the API server is in trouble."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from batchkit.busy import Busy
from batchkit.contrib.kubernetes import PodDeletionCost
from batchkit.contrib.kubernetes.api import PodNotPatched
from batchkit.hooks import HookContext, WorkerState
from tests.busy.api_server import COST, PATH, TOKEN, ApiServer, api_server
from tests.busy.conftest import Fleet
from tests.waiting import eventually

_sequence = itertools.count()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """Give an API server."""
    with api_server(tmp_path) as made:
        yield made


@pytest.fixture
def settings(api: ApiServer) -> dict[str, str]:
    """Give the workers the hook and what Kubernetes gives a pod."""
    return {
        **api.env,
        "TEST_HOOK": "tests.busy.platform_hooks:deletion_cost",
        "TEST_HOOK_ARGUMENT": str(api.account),
    }


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Give the moment."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still."""
    return Clock()


def _context(instance: str = "worker-7d9f-x2x4z") -> HookContext:
    def busy() -> Busy:
        raise AssertionError

    return HookContext(
        worker=f"{instance}:7",
        instance=instance,
        kind="celery",
        busy=busy,
        max_protect=None,
        repeat_seconds=10.0,
    )


@pytest.fixture
def hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """Give the hook in a pod that has begun; a worker makes its own."""
    if "fleet" in request.fixturenames:
        return "deletion_cost"
    api: ApiServer = request.getfixturevalue("api")
    for name, value in api.env.items():
        monkeypatch.setenv(name, value)
    made = PodDeletionCost(account=api.account, clock=request.getfixturevalue("clock"))
    made.begin(_context())
    return made


def _state(*, protected: int = 0, interruptible: int = 0) -> WorkerState:
    return WorkerState("pod:7", "pod", protected, interruptible, None, False, next(_sequence))


IDLE = _state()
INTERRUPTIBLE = _state(interruptible=2)
PROTECTED = _state(protected=1, interruptible=1)


def test_the_pod_costs_what_would_be_lost_with_it(hook: PodDeletionCost, api: ApiServer, clock: Clock):
    for state in (IDLE, INTERRUPTIBLE, PROTECTED, INTERRUPTIBLE, IDLE):
        hook.changed(state)
        clock.now += 30
    assert ["0", "10", "1000", "10", "0"] == api.costs
    assert {"prometheus.io/scrape": "true", COST: "0"} == api.annotations, "what others have set is left alone"
    (first, *_) = api.asked
    assert ("PATCH", PATH) == (first.method, first.path)
    assert "application/merge-patch+json" == first.content_type
    assert f"Bearer {TOKEN}" == first.authorization


def test_a_band_is_shown_once_however_many_chunks_it_lasts(hook: PodDeletionCost, api: ApiServer, clock: Clock):
    for number in range(100):
        hook.changed(_state(interruptible=1 + number % 7))
        hook.repeated(_state(interruptible=1 + number % 5))
        hook.checkpointed(_state(interruptible=1))
        clock.now += 10
    assert ["10"] == api.costs


def test_what_goes_up_and_down_is_patched_twice_in_the_least_interval_at_the_most(
    hook: PodDeletionCost, api: ApiServer, clock: Clock
):
    for _ in range(300):
        hook.changed(PROTECTED)
        clock.now += 0.5
        hook.changed(IDLE)
        clock.now += 0.5
    # 300 seconds hold ten intervals.
    assert 2 * 10 >= len(api.asked)
    assert "1000" == api.costs[0], "up at once"


def test_the_way_down_waits_for_a_repetition(hook: PodDeletionCost, api: ApiServer, clock: Clock):
    hook.changed(PROTECTED)
    clock.now += 29
    hook.changed(IDLE)
    assert ["1000"] == api.costs
    clock.now += 1
    hook.repeated(IDLE)
    hook.repeated(IDLE)
    assert ["1000", "0"] == api.costs


def test_a_pod_that_outlives_its_worker_costs_nothing(hook: PodDeletionCost, api: ApiServer):
    hook.changed(PROTECTED)
    hook.end()
    assert ["1000", "0"] == api.costs
    hook.end()
    assert ["1000", "0"] == api.costs


def test_a_container_that_was_killed_and_begins_again_takes_back_what_it_left(hook: PodDeletionCost, api: ApiServer):
    hook.changed(PROTECTED)
    again = PodDeletionCost(account=api.account)
    again.begin(_context())
    again.changed(IDLE)
    assert "0" == api.annotations[COST]


def test_the_token_is_read_anew_since_it_is_exchanged(hook: PodDeletionCost, api: ApiServer):
    hook.changed(IDLE)
    api.exchange_token("second-token\n")
    hook.changed(PROTECTED)
    assert ["Bearer first-token", "Bearer second-token"] == [each.authorization for each in api.asked]


@pytest.mark.usefixtures("hook")
def test_the_node_is_kept_while_the_pod_is_protected_and_no_longer(api: ApiServer):
    keeping = PodDeletionCost(account=api.account, keep_node=True, least_interval=0)
    keeping.begin(_context())
    keeping.changed(PROTECTED)
    marks = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    assert {**api.annotations, **marks} == api.annotations
    keeping.changed(INTERRUPTIBLE)
    assert not set(marks) & set(api.annotations)


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (401, "service account is there"),
        (403, r"may not `patch` `pods` in shop: apply docs/hooks/kubernetes/rbac.yaml"),
        (404, "POD_NAME, by the downward API"),
        (409, "it is tried again"),
        (500, "it is tried again"),
    ],
)
def test_what_the_api_server_refuses_is_said_with_its_mend_and_tried_again(
    hook: PodDeletionCost, api: ApiServer, status: int, mend: str
):
    api.troubles = [status]
    with pytest.raises(PodNotPatched, match=f"(?s)answered {status} .*{mend}.*It says: trouble {status}"):
        hook.changed(PROTECTED)
    hook.repeated(PROTECTED)
    hook.repeated(PROTECTED)
    assert ["1000", "1000"] == api.costs
    assert "1000" == api.annotations[COST]


def test_an_api_server_that_hangs_is_given_up_and_asked_again_what_it_may_have_done(
    hook: PodDeletionCost, api: ApiServer
):
    hook.changed(IDLE)
    api.troubles = [0]
    with pytest.raises(PodNotPatched, match="did not take the annotation"):
        hook.changed(PROTECTED)
    # Whether that was done nobody knows, so that it is idle again is said, too.
    hook.repeated(IDLE)
    assert ["0", "1000", "0"] == api.costs


def test_no_token_is_sent_to_a_server_that_the_clusters_authority_does_not_know(hook: PodDeletionCost, api: ApiServer):
    trustme.CA().cert_pem.write_to_path(api.account / "ca.crt")
    with pytest.raises(PodNotPatched, match="certificate verify failed"):
        hook.changed(PROTECTED)
    assert [] == api.asked


def test_a_pod_without_an_account_is_told_what_it_needs(hook: PodDeletionCost, api: ApiServer):
    (api.account / "token").unlink()
    with pytest.raises(PodNotPatched, match="automountServiceAccountToken must not be false"):
        hook.changed(IDLE)


def test_the_pod_is_called_as_the_instance_where_nothing_else_is_said(
    hook: PodDeletionCost, api: ApiServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("POD_NAME")
    hook.changed(IDLE)
    assert [PATH] == [each.path for each in api.asked]


def test_outside_of_a_cluster_it_does_nothing(api: ApiServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    hook = PodDeletionCost(account=api.account)
    hook.begin(_context())
    hook.changed(PROTECTED)
    hook.end()
    assert [] == api.asked


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ImportError, match=r"pip install 'batchkit-jobs\[kubernetes\]'"):
        PodDeletionCost()


_PATCH_IN_A_THREAD = """
import pathlib, sys, threading
from batchkit.contrib.kubernetes import PodDeletionCost
from batchkit.hooks import HookContext, WorkerState

hook = PodDeletionCost(account=pathlib.Path(sys.argv[1]))
hook.begin(HookContext("pod:7", "pod", "rq", lambda: None, None, 10.0))
before = set(sys.modules)
patching = threading.Thread(target=hook.changed, args=(WorkerState("pod:7", "pod", 1, 0, None, False, 1),))
patching.start()
patching.join()
print(sorted(set(sys.modules) - before))
"""


def test_the_hooks_thread_imports_nothing_for_a_child_may_be_forked_in_the_middle(api: ApiServer):
    env = {**os.environ, **api.env}
    patched = subprocess.run(
        [sys.executable, "-c", _PATCH_IN_A_THREAD, str(api.account)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ["1000"] == api.costs
    assert "[]" == patched.stdout.strip()


# In real workers


def test_a_worker_patches_its_pod_at_the_edges_of_a_run_and_not_for_each_chunk(fleet: Fleet, api: ApiServer):
    fleet.worker()
    eventually(lambda: api.costs == ["0"], within=60, message=fleet.crew.logs)
    fleet.check(fleet.start("must-stay", pause=0.05))
    eventually(lambda: api.costs[-1] == "0" and len(api.costs) > 1, within=60, message=fleet.crew.logs)
    assert ["0", "1000", "0"] == api.costs
    assert {COST: "0", "prometheus.io/scrape": "true"} == api.annotations


@pytest.mark.parametrize("kind", ["local"])
def test_an_api_server_in_trouble_changes_no_run(fleet: Fleet, api: ApiServer):
    api.troubles = [500, 0, 403, 0, 409] * 20
    fleet.worker()
    fleet.check(fleet.start("must-stay", pause=0.02), fleet.start("count", pause=0.02))
    assert api.asked
