"""The queues that wake workers up."""

from batchkit.queues.inline import InlineQueue
from batchkit.queues.local import LocalQueue

__all__ = ["InlineQueue", "LocalQueue"]
