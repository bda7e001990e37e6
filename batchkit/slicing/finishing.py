"""The end of a run: its `finish` function, in the transaction that makes the run succeeded."""

from __future__ import annotations

from collections.abc import Callable

from batchkit.chunk import Finish
from batchkit.errors import BatchkitError, InvalidParams
from batchkit.slicing import endings
from batchkit.slicing.carry import read_carry
from batchkit.slicing.course import Course
from batchkit.slicing.outcome import Declined, Ending, Outcome
from batchkit.store import ChunkTransaction
from batchkit.values import dumps


def finish(course: Course) -> Outcome:
    """
    Call the job's `finish`, and end the run with what it returns.

    Raises:
        Declined: this worker's job takes other params, or has no such function.
        WorkerKilled: it has killed its workers often enough.
        Exception: what the function raises.
    """
    call, store = _prepared(course), course.around.store
    course.goes_by(course.caution.before_step(course.lease))
    course.cutter.chunk_begins()
    transaction = course.open()
    try:
        result = dumps(call(_end(course, transaction)), where="what finish returned")
        transaction.flush()
        course.cutter.chunk_ends()
        transaction.keep_nothing_of_dry_run()
        tx = transaction.store_connection()
        ended = store.leases.finish(tx, course.lease, result=result, worker=course.around.worker)
        changed = store.database.changes.taken(tx)
        if ended is None:
            transaction.commit()
    except BaseException as error:
        course.undo(transaction, error)
        raise
    if ended is not None:
        transaction.rollback()
        return endings.yield_to(course, ended)
    store.database.changes.committed(changed)
    return course.outcome(Ending.EXHAUSTED)


def _prepared(course: Course) -> Callable[[Finish], object]:
    try:
        params = course.job.params(course.lease.params)
    except InvalidParams as error:
        raise Declined(error) from error
    function = course.job.finish
    if function is None:
        raise Declined(
            BatchkitError(
                f"job {course.job.name} has no finish function in this worker, but run {course.lease.run_id} began "
                f"with one; deploy the code that it began with"
            )
        )
    return lambda end: function(end, **params)


def _end(course: Course, transaction: ChunkTransaction) -> Finish:
    rows = course.around.store.leases.carries(transaction.store_connection(), course.lease)
    return Finish(
        transaction=transaction,
        run_id=course.lease.run_id,
        done=sum(done for _, done, _, _ in rows),
        failed=sum(failed for _, _, failed, _ in rows),
        in_doubt=sum(in_doubt for _, _, _, in_doubt in rows),
        carries=[read_carry(carry) for carry, _, _, _ in rows],
        is_dry_run=course.lease.is_dry_run,
    )
