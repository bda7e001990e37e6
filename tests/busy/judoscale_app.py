"""The app of the busy tests, with Judoscale's adapter in it, and an ordinary task."""

from __future__ import annotations

import os
import time
from pathlib import Path

from redis import Redis

from batchkit.contrib.judoscale import track_busy_jobs
from tests.busy import app as batch
from tests.busy.app import KIND, kit

STOCK = "TEST_STOCK" in os.environ
# The adapter learns of a queue when a program that has it sends there, or from what waits when it begins.
SETTINGS = {"TRACK_BUSY_JOBS": True, "QUEUES": [os.environ["TEST_QUEUE"], "default"] if STOCK else []}
EXTRA = {"REPORT_INTERVAL_SECONDS": float(os.environ["TEST_INTERVAL"]), "CELERY": SETTINGS, "RQ": SETTINGS}


def wait_for_file(name: str) -> None:
    """Take as long as it takes until somebody makes the file."""
    while not Path(name).exists():
        time.sleep(0.05)


if KIND == "celery":
    from judoscale.celery import judoscale_celery

    app = batch.app
    ordinary = app.task(name="ordinary")(wait_for_file)
    judoscale_celery(app, extra_config=EXTRA)
else:
    from judoscale.rq import judoscale_rq

    judoscale_rq(Redis.from_url(os.environ["TEST_BROKER"]), extra_config=EXTRA)

track_busy_jobs(kit, interruptible_is_busy=STOCK)
