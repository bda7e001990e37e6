"""RQ as the queue: stock workers work batched jobs, each under its own function's name."""

from batchkit.queues.rq.queue import RQQueue
from batchkit.queues.rq.worker import Worker

__all__ = ["RQQueue", "Worker"]
