"""Two kits in one process: a task works for the kit of its own queue, whichever was built last."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job

from batchkit import BatchKit, Chunk, RunState, batched, span
from batchkit.errors import InvalidJob, InvalidQueue
from batchkit.job import current_kit
from batchkit.queues import InlineQueue, RQQueue
from tests.queues.conftest import Bench
from tests.queues.kitless_jobs import kitless


def test_a_celery_task_works_for_the_kit_of_its_app(bench: Bench, sqlite_url: str):
    bench.crew.env["TEST_OTHER_DATABASE"] = sqlite_url
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as other:
        other.migrate()
        bench.crew.celery("--pool", "prefork", "-c", "1", app="tests.queues.two_kits_app")
        bench.check(bench.start("short-slices", pause=0.0))
        assert [] == other.runs()


def which_kit() -> str:
    """Tell which kit jobs use here."""
    kit = current_kit()
    assert isinstance(kit, BatchKit)
    return kit.database_url


def test_an_rq_job_works_for_the_kit_of_its_redis(redis_url: str, tmp_path_factory: pytest.TempPathFactory):
    urls = [f"sqlite:///{tmp_path_factory.mktemp(name) / 'kit.db'}" for name in ("first", "last")]
    first = BatchKit(urls[0], queue=RQQueue(Redis.from_url(redis_url)))
    last = BatchKit(urls[1], queue=RQQueue(Redis.from_url(f"{redis_url.rpartition('/')[0]}/15")))
    with closing(first), closing(last):
        assert last is current_kit()
        queue = Queue(connection=Redis.from_url(redis_url))
        job = queue.enqueue(which_kit)
        SimpleWorker([queue], connection=queue.connection).work(burst=True)
        assert urls[0] == job.return_value(refresh=True)
        assert last is current_kit()


def test_a_worker_in_which_no_kit_was_built_makes_none_of_its_own(postgres_url: str, redis_url: str, tmp_path: Path):
    with closing(BatchKit(postgres_url, queue=RQQueue(Redis.from_url(redis_url)))) as kit:
        kit.migrate()
        run = kitless.start()
        worker = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", redis_url, "default"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        environment.pop("BATCHKIT_DATABASE_URL", None)
        subprocess.run(worker, cwd=tmp_path, env=environment, check=True, timeout=60)

        failed = Queue(connection=Redis.from_url(redis_url)).failed_job_registry
        (job_id,) = failed.get_job_ids()
        result = Job.fetch(job_id, connection=failed.connection).latest_result()
        assert result is not None
        assert "no BatchKit was built in this worker" in str(result.exc_string)
        assert not list(tmp_path.glob("*.db"))
        assert RunState.QUEUED is run.refresh().state


def test_a_job_that_workers_cannot_import_is_refused(postgres_url: str, redis_url: str):
    with closing(BatchKit(postgres_url, queue=RQQueue(Redis.from_url(redis_url)))) as kit:
        kit.migrate()

        @batched(span(3), name="inside")
        def inside(chunk: Chunk[int]) -> None:
            pass

        with pytest.raises(InvalidJob, match="inside a function, where the workers of RQQueue cannot import it"):
            inside.start()
        assert [] == kit.runs()


def test_a_connection_that_decodes_is_refused(redis_url: str):
    with pytest.raises(InvalidQueue, match="decode_responses"):
        RQQueue(Redis.from_url(redis_url, decode_responses=True))
