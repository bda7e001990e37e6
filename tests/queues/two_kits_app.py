"""
Two Celery apps in one process, each with a kit on a database of its own: `celery -A tests.queues.two_kits_app worker`.

The worker is that of the first; the kit of the other is built last.
"""

from __future__ import annotations

import os

from celery import Celery

from batchkit import BatchKit
from batchkit.queues import CeleryQueue
from tests.queues.celery_app import app, kit

__all__ = ["app", "kit", "other_app", "other_kit"]

other_app = Celery(broker=os.environ["TEST_BROKER"], set_as_current=False)
other_kit = BatchKit(os.environ["TEST_OTHER_DATABASE"], queue=CeleryQueue(other_app))
