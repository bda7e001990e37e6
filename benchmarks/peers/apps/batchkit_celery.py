"""batchkit on Celery."""

from __future__ import annotations

import os

from celery import Celery

from batchkit import BatchKit
from batchkit.queues import CeleryQueue
from benchmarks.peers import rows
from benchmarks.peers.apps import batchkit_jobs

app = Celery("bench", broker=rows.redis_url(), backend=rows.redis_url())
app.conf.broker_connection_retry_on_startup = True
kit = BatchKit(os.environ[rows.DATABASE], queue=CeleryQueue(app))
prepare = kit.migrate
start, start_in_two = batchkit_jobs.start, batchkit_jobs.start_in_two
