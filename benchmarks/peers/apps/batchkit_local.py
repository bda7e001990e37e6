"""batchkit on its built-in queue."""

from __future__ import annotations

import os

from batchkit import BatchKit
from benchmarks.peers import rows
from benchmarks.peers.apps import batchkit_jobs

kit = BatchKit(os.environ[rows.DATABASE])
prepare = kit.migrate
start, start_in_two, call = batchkit_jobs.start, batchkit_jobs.start_in_two, batchkit_jobs.call
