"""Working the steps of a resumable: what its generator does between two yields is a chunk."""

from __future__ import annotations

from collections.abc import Mapping

from batchkit.isolation import ChunkFailed
from batchkit.model import Checkpoint, Lease, Standing
from batchkit.slicing.course import Course
from batchkit.slicing.throttling import Throttling
from batchkit.slicing.trials import Trials
from batchkit.stepping import Stepped, Walk


class StepWork:
    """Works the steps of one slice; to be closed at its end, with its generator."""

    def __init__(self, course: Course, trials: Trials, params: Mapping[str, object]) -> None:
        self._course = course
        self._trials = trials
        self._throttling = Throttling(course, trials)
        self._walk = Walk(
            course.job,
            params,
            held=course.held,
            stop=course.around.stop,
            should_stop=course.should_stop,
            protecting=course.protecting.protected,
        )

    def close(self) -> None:
        """End the generator where it stands."""
        self._walk.close()

    def next(self) -> Standing | None:
        """
        Commit the next step; None where there is none.

        Raises:
            Stopped, HeldBack, LeaseLost
            Exception: what stays wrong with the step, and makes the run fail.
        """
        self._course.check_goes_on()
        try:
            return self._trials.with_retries(self._step)
        except ChunkFailed as failed:
            error, traceback = failed.error, failed.traceback
        raise error.with_traceback(traceback)

    def _step(self) -> Standing | None:
        course, walk = self._course, self._walk
        if walk.is_over(course.lease):
            return None
        # How many items it does, a step says when it has done them; a rate counts steps.
        self._throttling.wait(1)
        course.goes_by(course.caution.before_step(course.lease))
        course.begin_chunk()
        course.isolation.begin()
        try:
            stepped, moved, standing = self._commit()
        except BaseException:
            walk.close()
            raise
        course.moved_on(moved)
        if stepped.is_last:
            # A pause that the checkpoint has brought back comes too late, and a cancel is seen by the release.
            return None
        if course.should_stop() or not standing.goes_on:
            walk.close()
        return standing

    def _commit(self) -> tuple[Stepped, Lease, Standing]:
        course, walk = self._course, self._walk
        transaction = course.open(walk.kept)
        try:
            with self._trials.blaming_items(None):
                walk.advance(transaction, course.lease, attempt=course.isolation.tries)
                transaction.flush()
            course.cutter.chunk_ends()
            stepped = walk.stepped(course.lease)
            course.calls_after_commit(stepped.committed_calls)
            transaction.keep_nothing_of_dry_run()
            checkpoint = Checkpoint(
                cursor=stepped.cursor,
                done=stepped.items,
                failed=0,
                carry=stepped.carry,
                chunk_size=stepped.items,
                rate=course.measured(stepped.items),
                chunk_seconds=course.chunk_seconds(),
            )
            moved, standing = transaction.checkpoint(course.around.store.leases, course.lease, checkpoint)
            with self._trials.blaming_items(None):
                transaction.commit()
        except BaseException as error:
            course.undo(transaction, error)
            raise
        return stepped, moved, standing
