"""batchkit on RQ."""

from __future__ import annotations

import os

from redis import Redis

from batchkit import BatchKit
from batchkit.queues import RQQueue
from benchmarks.peers import rows
from benchmarks.peers.apps import batchkit_jobs

kit = BatchKit(os.environ[rows.DATABASE], queue=RQQueue(Redis.from_url(rows.redis_url())))
prepare = kit.migrate
start, start_in_two = batchkit_jobs.start, batchkit_jobs.start_in_two
