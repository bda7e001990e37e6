"""Celery as the queue: stock workers work batched jobs, each under its own task name."""

from batchkit.queues.celery.queue import CeleryQueue

__all__ = ["CeleryQueue"]
