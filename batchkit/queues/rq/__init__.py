"""RQ as the queue: stock workers work batched jobs, each under its own function's name."""

from batchkit.queues.rq.queue import RQQueue

__all__ = ["RQQueue"]
