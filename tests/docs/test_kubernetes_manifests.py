"""
The manifests in docs/hooks/kubernetes fit the published schemas, each other, and what they ask for.

Kubernetes' own schemas come from kubernetes-validate, those of KEDA's resources from cloudcoil's models, which are made
of its CRDs. What a trigger's `metadata` may hold is in no schema: it is checked against the pages on each scaler.
"""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gjson
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from sqlalchemy import text
from werkzeug.test import Client

from batchkit import BatchKit, span
from batchkit.cli import app
from batchkit.contrib.http import busy_app
from batchkit.queues import LocalQueue
from tests.slices.conftest import job
from tests.waiting import eventually

_FOLDER = Path(__file__).parents[2] / "docs" / "hooks" / "kubernetes"
_FILES = sorted(_FOLDER.glob("*.yaml"))
_KUBERNETES = "1.30"

#: keda.sh/docs/2.15/scalers/metrics-api and .../postgresql: what must be there, and what may be.
_TRIGGERS = {
    "metrics-api": (
        {"url", "valueLocation", "targetValue"},
        {"activationTargetValue", "format", "unsafeSsl", "authMode", "method", "keyParamName"},
    ),
    "postgresql": (
        {"query", "targetQueryValue", "host", "port", "dbName", "userName", "sslmode"},
        {"activationTargetQueryValue", "passwordFromEnv"},
    ),
}
#: To start a command in the container, import the app and look into the database.
_START_SECONDS = 5.0


def _resources(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((_FOLDER / name).read_text()) if each is not None]


def _all() -> list[dict[str, Any]]:
    return [each for path in _FILES for each in _resources(path.name)]


def _of(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in _resources(name) if each["kind"] == kind)
    return found


def _container(file: str) -> dict[str, Any]:
    container: dict[str, Any] = _of("Deployment", file)["spec"]["template"]["spec"]["containers"][0]
    return container


def _strict(schema: Any) -> Any:
    """Refuse what a schema does not name, as the API server does in strict validation."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made


_KEDA = {
    "ScaledObject": _strict(ScaledObject.model_json_schema(by_alias=True)),
    "TriggerAuthentication": _strict(TriggerAuthentication.model_json_schema(by_alias=True)),
}


def _check(resource: dict[str, Any]) -> None:
    if resource["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(resource, _KEDA[resource["kind"]])
    else:
        kubernetes_validate.validate(resource, _KUBERNETES, strict=True)


def _label(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}-{resource['metadata']['name']}"


@pytest.mark.parametrize("resource", _all(), ids=_label)
def test_each_fits_its_published_schema(resource: dict[str, Any]):
    _check(resource)


@pytest.mark.parametrize("resource", _all(), ids=_label)
def test_a_field_that_is_misspelt_would_be_found(resource: dict[str, Any]):
    wrong = copy.deepcopy(resource)
    wrong.get("spec", wrong)["replicaz"] = 1
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _check(wrong)


def _scaled() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for each in _all():
        if each["kind"] == "ScaledObject":
            for trigger in each["spec"]["triggers"]:
                yield each, trigger


@pytest.mark.parametrize(("scaled", "trigger"), list(_scaled()), ids=lambda each: each.get("type", ""))
def test_a_trigger_says_what_its_scaler_takes_and_scales_the_workers(scaled: dict[str, Any], trigger: dict[str, Any]):
    required, optional = _TRIGGERS[trigger["type"]]
    assert required <= set(trigger["metadata"]) <= required | optional
    assert {str} == {type(value) for value in trigger["metadata"].values()}, "KEDA takes strings only"
    assert _of("Deployment", "worker.yaml")["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"]
    target = trigger["metadata"].get("targetValue") or trigger["metadata"]["targetQueryValue"]
    assert f"--concurrency={target}" in _container("worker.yaml")["command"], "one slot is wanted for one slice"


def test_nobody_sets_a_number_of_replicas_that_keda_sets():
    assert "replicas" not in _of("Deployment", "worker.yaml")["spec"]


def test_the_password_of_the_database_comes_from_what_the_trigger_names():
    (trigger,) = _of("ScaledObject", "scaledobject-postgresql.yaml")["spec"]["triggers"]
    authentication = _of("TriggerAuthentication", "scaledobject-postgresql.yaml")
    assert authentication["metadata"]["name"] == trigger["authenticationRef"]["name"]
    assert ["password"] == [each["parameter"] for each in authentication["spec"]["secretTargetRef"]]


def test_the_account_may_patch_pods_and_the_workers_have_it():
    role, binding = _of("Role", "rbac.yaml"), _of("RoleBinding", "rbac.yaml")
    assert [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}] == role["rules"]
    assert role["metadata"]["name"] == binding["roleRef"]["name"]
    account = _of("ServiceAccount", "rbac.yaml")["metadata"]["name"]
    pod = _of("Deployment", "worker.yaml")["spec"]["template"]["spec"]
    assert [account, account] == [binding["subjects"][0]["name"], pod["serviceAccountName"]]


def test_there_is_time_for_the_hook_before_the_stop_and_for_the_grace_after_the_signal():
    container = _container("worker.yaml")
    hook = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    found = re.search(r"wait-idle --timeout (\d+)", hook)
    assert found is not None
    grace = next(float(each["value"]) for each in container["env"] if each["name"] == "BATCHKIT_GRACE_SECONDS")
    period = _of("Deployment", "worker.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert period >= float(found[1]) + 2 * _START_SECONDS + grace


def test_the_hook_before_the_stop_empties_a_worker(sqlite_url: str, tmp_path: Path):
    (shell, option, line) = _container("worker.yaml")["lifecycle"]["preStop"]["exec"]["command"]
    (tmp_path / "shop.py").write_text(f"from batchkit import BatchKit\nkit = BatchKit({sqlite_url!r})\nkit.migrate()\n")
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "BATCHKIT_APP": "shop:kit"}
    env |= {"BATCHKIT_RUN_DIR": str(tmp_path / "run"), "BATCHKIT_INSTANCE": "pod-1"}
    done = subprocess.run(
        [shell, option, line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=100
    )
    assert 0 == done.returncode, done.stderr
    assert "pod-1 is idle" in done.stderr
    assert [True] == [path.name.startswith("drain-pod-1") for path in (tmp_path / "run").iterdir()]


def test_probes_ask_for_what_is_served(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=LocalQueue())) as kit:
        kit.migrate()
        client = Client(busy_app(kit))
        for file in ("worker.yaml", "serve-busy.yaml"):
            container = _container(file)
            (port,) = container["ports"]
            probes = [container[name]["httpGet"] for name in container if name.endswith("Probe")]
            assert {port["name"]} == {probe["port"] for probe in probes}
            for probe in probes:
                # On a busy machine the database may not have answered in time, and 503 says so.
                eventually(lambda path=probe["path"]: client.get(path).status_code == 200, message=str(probe))  # type: ignore[misc]


def test_the_commands_are_there_and_have_these_options():
    group: Any = typer.main.get_command(app)
    served = shlex.split(" ".join(_container("serve-busy.yaml")["command"]))
    assert "batchkit" == served[0]
    known = {option for each in group.commands[served[1]].params for option in each.opts}
    assert {each for each in served if each.startswith("--")} <= known
    (port,) = _container("serve-busy.yaml")["ports"]
    assert str(port["containerPort"]) == served[-1]


def test_keda_finds_the_number_where_the_manifest_says_it_is(sqlite_url: str):
    (trigger,) = _of("ScaledObject", "scaledobject-metrics-api.yaml")["spec"]["triggers"]
    service = _of("Service", "serve-busy.yaml")
    host, _, path = trigger["metadata"]["url"].removeprefix("http://").partition("/")
    (port,) = service["spec"]["ports"]
    assert f"{service['metadata']['name']}.default.svc.cluster.local:{port['port']}" == host
    with closing(BatchKit(sqlite_url, queue=LocalQueue())) as kit:
        kit.migrate()
        job(span(3), lambda chunk: None).start()
        told = Client(busy_app(kit)).get(f"/{path}").json
    assert 1 == gjson.get(told, trigger["metadata"]["valueLocation"])


def test_keda_finds_the_number_by_the_query_that_the_manifest_has(postgres_url: str):
    (trigger,) = _of("ScaledObject", "scaledobject-postgresql.yaml")["spec"]["triggers"]
    query = text(trigger["metadata"]["query"].replace("::", r"\:\:"))
    with closing(BatchKit(postgres_url, queue=LocalQueue())) as kit:
        kit.migrate()
        kit.make_busy_view()
        numbers = []
        for _ in range(2):
            with kit._store.database.reading() as tx:  # noqa: SLF001  KEDA has a connection of its own
                numbers.append(tx.execute(query).scalar_one())
            job(span(3), lambda chunk: None).start()
    assert [0, 1] == numbers


def test_the_service_finds_the_pods_that_serve():
    labels = _of("Deployment", "serve-busy.yaml")["spec"]["template"]["metadata"]["labels"]
    assert labels == _of("Service", "serve-busy.yaml")["spec"]["selector"]
    for file in ("worker.yaml", "serve-busy.yaml"):
        spec = _of("Deployment", file)["spec"]
        assert spec["template"]["metadata"]["labels"] == spec["selector"]["matchLabels"]
