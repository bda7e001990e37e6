"""Two kits in one process: a task works for the kit of its own queue, whichever was built last."""

from __future__ import annotations

from contextlib import closing

import pytest
from redis import Redis
from rq import Queue, SimpleWorker

from batchkit import BatchKit
from batchkit.errors import InvalidQueue
from batchkit.job import current_kit
from batchkit.queues import InlineQueue, RQQueue
from tests.queues.conftest import Bench


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


def test_a_connection_that_decodes_is_refused(redis_url: str):
    with pytest.raises(InvalidQueue, match="decode_responses"):
        RQQueue(Redis.from_url(redis_url, decode_responses=True))
