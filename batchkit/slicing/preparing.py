"""What comes before the first chunk: the params, the source, and whether both are what the run began with."""

from __future__ import annotations

from typing import Any

from batchkit.errors import InvalidParams, InvalidStart, SourceChanged
from batchkit.planning import (
    Cursors,
    bounded,
    check_fingerprint,
    check_identity,
    fingerprint_of,
    identity_of,
    make_source,
    plan,
    prefetch_items,
)
from batchkit.promises import EXACTLY_ONCE, cannot_commit_together
from batchkit.replaying import FailedItems
from batchkit.slicing.course import Course
from batchkit.slicing.items import Reading
from batchkit.slicing.outcome import Declined
from batchkit.slicing.trials import Trials
from batchkit.sources.base import Prefetching, Source


class Preparation:
    """Prepares one slice; it plans the run where nobody has."""

    def __init__(self, course: Course, trials: Trials) -> None:
        self._course = course
        self._trials = trials

    def prepare(self) -> Reading | None:
        """
        Give what the chunks are read from; None where the run was found to have no items.

        Raises:
            Declined: this worker's code does not fit the run.
            LeaseLost, Stopped
            Exception: what makes the run fail: a source that cannot be made or read, a file that has changed.
        """
        course = self._course
        try:
            params = course.job.params(course.lease.params)
        except InvalidParams as error:
            raise Declined(error) from error
        self._check_promise()
        source = make_source(course.job, params)
        if course.lease.failures_of is not None:
            source = self._failed_items(source)
        is_empty = False
        if not course.lease.is_planned:
            is_empty = self._trials.with_retries(lambda: self._plan(source))
        if course.lease.identity is None:
            self._accept(source)
        self._trials.with_retries(lambda: self._check(source))
        part = bounded(source, course.lease)
        return None if is_empty else Reading(part, Cursors(part), params, whole=source)

    def _check_promise(self) -> None:
        """Let a run that another kit has started promise no more than this one's sessions can keep."""
        course = self._course
        if course.lease.delivery != EXACTLY_ONCE or course.around.sessions.is_ours:
            return
        if course.job.options.delivery == EXACTLY_ONCE:
            raise Declined(InvalidStart(cannot_commit_together(course.job.name)))
        self._trials.with_faults(lambda: course.around.store.runs.weaken(course.lease.run_id))

    def _failed_items(self, source: Source[Any]) -> Source[Any]:
        course = self._course
        failed = FailedItems(source, course.around.store, course.lease, version=course.job.options.version)
        try:
            failed.check()
        except SourceChanged as error:
            raise Declined(error) from error
        return failed

    def _plan(self, source: Source[Any]) -> bool:
        """Plan the run; say whether it has no items."""
        course = self._course
        if isinstance(source, Prefetching):
            with self._trials.blaming_others():
                after = Cursors(source).read(course.lease.cursor)
                prefetch_items(source, after, limit=course.isolation.limit, lease=course.lease)
        transaction = course.open()
        try:
            planned = plan(course.job, source, transaction.session, course.lease)
        finally:
            transaction.rollback()
        course.goes_by(course.around.store.leases.plan(course.lease, planned))
        return not planned.ranges

    def _accept(self, source: Source[Any]) -> None:
        """Go on with what this code gives, since a person has said that the cursor means the same there."""
        course = self._course
        identity, fingerprint = identity_of(source, version=course.job.options.version), fingerprint_of(source)
        course.goes_by(course.around.store.leases.accept(course.lease, identity=identity, fingerprint=fingerprint))

    def _check(self, source: Source[Any]) -> None:
        with self._trials.blaming_others():
            try:
                check_identity(self._course.job, source, self._course.lease)
            except SourceChanged as error:
                raise Declined(error) from error
            check_fingerprint(source, self._course.lease)
