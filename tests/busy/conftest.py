"""Workers of each queue with a busy hook in them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchkit import BatchKit, Run, RunState
from batchkit.busy import Busy
from batchkit.queues import InlineQueue
from batchkit.states import FINAL
from tests.busy import recorder
from tests.queues import ledger
from tests.queues.workers import Crew, QueueWorker, crew
from tests.waiting import eventually

APP = "tests.busy.app"
ITEMS = 100


@dataclass
class Fleet:
    """Items to be done, and workers of one kind that do them."""

    kind: str
    database: str
    crew: Crew
    kit: BatchKit
    folder: Path

    @property
    def log(self) -> Path:
        """Where the hook writes."""
        return self.folder / "hook.jsonl"

    def worker(self, *, slots: int = 1, env: Mapping[str, str] | None = None) -> QueueWorker:
        """Start a worker."""
        if self.kind == "celery":
            return self.crew.celery("-c", str(slots), app=APP, env=env)
        if self.kind == "rq":
            return self.crew.rq(kind="batchkit.queues.rq.Worker", env=env)
        arguments = ["-v", "-A", f"{APP}:kit", "work", "--processes", str(slots)]
        ready = "a worker process started" if slots > 1 else ""
        return self.crew._start("batchkit", *arguments, ready=ready, env=env)  # noqa: SLF001  one that may say nothing

    def start(self, job: str, **params: object) -> Run:
        """Start a run as a deploy script does."""
        return self.kit.run(self.command("start", job, *(f"{name}={value}" for name, value in params.items())))

    def command(self, *arguments: str, expected: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Run a command of batchkit's on the app that the workers run; give what it printed."""
        return self.crew.command(f"{APP}:kit", *arguments, expected=expected, env=env)

    def told(self, method: str = "") -> list[dict[str, Any]]:
        """Give what the hook was told."""
        return [each for each in recorder.read(self.log) if method in {"", each["method"]}]

    def wait_told(self, condition: Callable[[list[dict[str, Any]]], object], what: str) -> None:
        """Wait until what the hook was told is as it should be."""
        eventually(
            lambda: condition(self.told()),
            within=60,
            message=lambda: f"the hook was not told {what}: {self.told()}\n{self.crew.logs()}",
        )

    def wait_busy(self, condition: Callable[[Busy], object], what: str) -> Busy:
        """Wait until the fleet is as it should be."""
        eventually(
            lambda: condition(self.kit.busy()),
            within=60,
            message=lambda: f"{what}: {self.kit.busy()}\n{self.crew.logs()}",
        )
        return self.kit.busy()

    def check(self, *runs: Run) -> None:
        """See that every item was done once by each run."""
        for run in runs:
            eventually(
                lambda run=run: run.refresh().state in FINAL,  # type: ignore[misc]
                within=90,
                message=lambda run=run: f"{run} did not end: {run.history()}\n{self.crew.logs()}",  # type: ignore[misc]
            )
            assert RunState.SUCCEEDED == run.state, (run.error, self.crew.logs())
        assert {len(runs): ITEMS} == ledger.times(self.database), self.crew.logs()


@pytest.fixture(params=["celery", "rq", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    """Say which queue's workers they are."""
    return str(request.param)


@pytest.fixture
def hook() -> str:
    """Say which hook the workers have."""
    return "Recorder"


@pytest.fixture
def settings() -> dict[str, str]:
    """Give more variables of the workers' environment."""
    return {}


@pytest.fixture
def fleet(  # noqa: PLR0917  fixtures
    request: pytest.FixtureRequest,
    kind: str,
    hook: str,
    settings: dict[str, str],
    postgres_url: str,
    tmp_path: Path,
) -> Iterator[Fleet]:
    """Give items in a database, and workers that are yet to start."""
    ledger.fill(postgres_url, items=ITEMS)
    env = {
        "TEST_KIND": kind,
        "TEST_DATABASE": postgres_url,
        "TEST_BROKER": "" if kind == "local" else request.getfixturevalue("redis_url"),
        "TEST_QUEUE": f"celery-{uuid.uuid4().hex}",
        "TEST_HOOK": f"tests.busy.recorder:{hook}",
        "TEST_HOOK_ARGUMENT": str(tmp_path / "hook.jsonl"),
        "BATCHKIT_APP": f"{APP}:kit",
        "BATCHKIT_RUN_DIR": str(tmp_path / "run"),
        "BATCHKIT_INSTANCE": "pod-1",
        # Not within this century.
        "TEST_MAX_PROTECT": "10000000000",
        **settings,
    }
    with closing(BatchKit(postgres_url, queue=InlineQueue())) as kit, crew(tmp_path, env) as workers:
        kit.migrate()
        yield Fleet(kind=kind, database=postgres_url, crew=workers, kit=kit, folder=tmp_path)
