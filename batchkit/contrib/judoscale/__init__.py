"""
Judoscale: its adapter's busy jobs, without the batch work that may be stopped.

`track_busy_jobs(kit)` behind `judoscale_celery(...)` or `judoscale_rq(...)` changes what the adapter reports as `busy`;
`JudoscaleHook` has it report early. `pip install 'batchkit-jobs[judoscale]'`.
"""

from __future__ import annotations

from batchkit.contrib.judoscale.collectors import track_busy_jobs
from batchkit.contrib.judoscale.pushing import JudoscaleHook

__all__ = ["JudoscaleHook", "track_busy_jobs"]
