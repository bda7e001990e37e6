"""procrastinate: a job per chunk in PostgreSQL, split beforehand and deferred in one statement."""

from __future__ import annotations

from procrastinate import App, JobContext, PsycopgConnector

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

app = App(connector=PsycopgConnector(conninfo=rows.postgres_url()))


@app.task
def chunk(low: int, high: int) -> None:
    """Work a chunk; the job is `succeeded` after that."""
    rows.work(low, high)


# What its documentation gives for jobs whose worker was killed, with the interval that it gives.
@app.periodic(cron="*/10 * * * *")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:  # noqa: ARG001  it is given both
    """Put back what a dead worker left."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


def prepare() -> None:
    """Make its tables."""
    with app.open():
        app.schema_manager.apply_schema()


def start(work: Work) -> None:
    """Defer them all."""
    with app.open():
        chunk.batch_defer(*({"low": low, "high": high} for low, high in work.ranges()))
