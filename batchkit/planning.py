"""Planning a run: what its first slice finds out, and what later slices check against it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from batchkit.errors import InvalidSource, SourceChanged
from batchkit.job import Definition
from batchkit.model import Lease, Plan, Range
from batchkit.sources.base import (
    Bounded,
    Coded,
    Continued,
    Counted,
    Estimate,
    Fingerprinted,
    Identified,
    NotFetched,
    Prefetching,
    Source,
    Splittable,
    Stateful,
    cannot_be_cut,
)
from batchkit.values import dumps, loads

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_ACCEPT = (
    "Deploy the code that it began with, or cancel it and start a new run; where the cursor means the same in this "
    "code, accept that: `batchkit resume ID --accept`"
)
_RESTORE = "Put the content that it began with back and resume() it, or start a new run"


def make_source(job: Definition, params: dict[str, object]) -> Source[Any]:
    """
    Call the job's source function.

    Raises:
        InvalidSource: what it returns is not a source.
    """
    source = job.make_source(**params)
    if not isinstance(source, Source):
        raise InvalidSource(
            f"the source function of job {job.name} returned {source!r}, which is not a source; "
            f"return rows(...), items(...), span(...), csv_rows(...) or an object with read(after, limit, session)"
        )
    # Where the job has no params, one object is there for all its slices, some of them at the same time.
    return source.anew() if isinstance(source, Stateful) else source


def plan(job: Definition, source: Source[Any], session: Session, lease: Lease) -> Plan:
    """
    Find out where the source ends, how many items the run has, what the cursors mean, and where it is cut.

    A run with a limit has one range: several workers could not tell who works the last of its items.

    Raises:
        InvalidSource: it is to have several ranges, and the source cannot be cut.
    """
    until, is_empty = None, False
    if isinstance(source, Bounded):
        upper = source.upper(session)
        until = None if upper is None else Cursors(source).write(upper)
        is_empty = upper is None
        source = source if upper is None else source.until(upper)
    # Only its generator knows how many items a resumable has, and its limit is one of steps.
    total = None if job.is_resumable else 0 if is_empty else _count(source, session, lease)
    cuts = [] if is_empty else _cuts(source, session, lease, until=until)
    ranges = [Range(*bounds) for bounds in pairwise([lease.cursor, *cuts, until])]
    return Plan(
        ranges=() if is_empty else tuple(ranges),
        total=None if total is None else int(total),
        total_is_estimate=isinstance(total, Estimate),
        identity=identity_of(source, version=job.options.version),
        fingerprint=fingerprint_of(source),
        has_finish=job.finish is not None,
    )


def read_items(
    source: Source[Any], after: object, *, limit: int, session: Session, lease: Lease
) -> list[tuple[Any, Any]]:
    """Read the next items, at most *limit*, and no more than the run's own limit leaves."""
    if lease.left is not None:
        limit = min(limit, lease.left)
    # A source of the user's may give more than it is asked for, even where an item is to be taken alone.
    return list(source.read(after, limit, session))[:limit] if limit > 0 else []


def prefetch_items(source: Prefetching, after: object, *, limit: int, lease: Lease) -> None:
    """Have a source that asks others do so now, for the items that `read_items` will read."""
    left = limit if lease.left is None else min(limit, lease.left)
    if left > 0:
        source.prefetch(after, left)


def read_whatever_it_takes(
    source: Source[Any], after: object, *, limit: int, session: Session
) -> Iterable[tuple[Any, Any]]:
    """Read from any place in a source, though it asks others inside the transaction for that."""
    while True:
        try:
            return list(source.read(after, limit, session))
        except NotFetched:
            if not isinstance(source, Prefetching):
                raise
            source.prefetch(after, limit)


def bounded(source: Source[Any], lease: Lease) -> Source[Any]:
    """Cut the source off where the lease's partition ends."""
    if lease.until is None or not isinstance(source, Bounded | Splittable):
        return source
    return source.until(Cursors(source).read(lease.until))


def check_identity(job: Definition, source: Source[Any], lease: Lease) -> None:
    """
    Refuse a source whose cursors mean something else than those of the run, and a job of another version.

    Raises:
        SourceChanged: the job's code gives another kind of source, or another key.
    """
    _compare(lease, lease.identity, identity_of(source, version=job.options.version), mend=_ACCEPT)


def check_fingerprint(source: Source[Any], lease: Lease) -> None:
    """
    Refuse a source whose content is not what the run began with.

    Raises:
        SourceChanged: a file was changed, a sequence has another length.
    """
    _compare(lease, lease.fingerprint, fingerprint_of(source), mend=_RESTORE)


def check_same(
    lease: Lease,
    *,
    identity: tuple[str | None, str | None] = (None, None),
    fingerprint: tuple[str | None, str | None] = (None, None),
) -> None:
    """
    Refuse to go on where what was recorded and what there is now, in this order, are not the same.

    Raises:
        SourceChanged: they are not.
    """
    _compare(lease, *identity, mend=_ACCEPT)
    _compare(lease, *fingerprint, mend=_RESTORE)


class Cursors:
    """Writes and reads the cursors of one source."""

    def __init__(self, source: Source[Any]) -> None:
        # Asked once: a check against a protocol takes longer than all else that is done to a cursor.
        self._code = source if isinstance(source, Coded) else None
        self._kind = type(source).__name__

    def write(self, cursor: object) -> str:
        """
        Write a cursor as JSON text.

        Raises:
            NotSerializable: it would not come back as the same value.
        """
        stored = cursor if self._code is None else self._code.encode(cursor)
        return dumps(stored, where=f"the cursor of {self._kind}")

    def read(self, text: str | None) -> Any:  # noqa: ANN401
        """Read what `write` wrote; None stands for the beginning."""
        if text is None:
            return None
        stored: Any = loads(text)
        return stored if self._code is None else self._code.decode(stored)


def identity_of(source: Source[Any], *, version: str | int | None) -> str:
    """Write down what gives the cursors of *source*, of a job of this *version*, their meaning, as JSON text."""
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    described = source.identity() if isinstance(source, Identified) else {"kind": kind}
    versioned = described if version is None else {**described, "version": version}
    return dumps(versioned, where="the identity of the source")


def fingerprint_of(source: Source[Any]) -> str | None:
    """Write down what the content of *source* is, as JSON text; None where it may change."""
    if not isinstance(source, Fingerprinted):
        return None
    return dumps(source.fingerprint(), where="the fingerprint of the source")


def _count(source: Source[Any], session: Session, lease: Lease) -> int | None:
    """Count the items behind the cursor that the run was started with, up to its limit; None where nobody knows."""
    if lease.cursor is not None:
        if not isinstance(source, Continued):
            return _limited(None, lease)
        source = source.behind(Cursors(source).read(lease.cursor))
    return _limited(source.count(session) if isinstance(source, Counted) else None, lease)


def _cuts(source: Source[Any], session: Session, lease: Lease, *, until: str | None) -> list[str]:
    """Give the cursors, as JSON text, at which the run is cut into ranges."""
    if lease.partitions == 1 or lease.limit is not None or lease.failures_of is not None:
        return []
    if not isinstance(source, Splittable):
        raise InvalidSource(f"the run is to have {lease.partitions} partitions, but {cannot_be_cut(source)}")
    begun: object = source
    if lease.cursor is not None:
        if not isinstance(source, Continued):
            raise InvalidSource(
                f"a run that begins behind a cursor cannot be cut into {lease.partitions} partitions where the source "
                f"has no behind(after); give it one, or start it with partitions=1"
            )
        begun = source.behind(Cursors(source).read(lease.cursor))
    # A source of the user's may lose this on the way.
    found = begun.split(lease.partitions, session) if isinstance(begun, Splittable) else ()
    written = [Cursors(source).write(cut) for cut in found]
    if len(written) >= lease.partitions:
        raise InvalidSource(
            f"split({lease.partitions}) of {type(source).__name__} gave {len(written)} cursors, which makes "
            f"{len(written) + 1} ranges; give at most {lease.partitions - 1}"
        )
    if len(set(written)) < len(written):
        raise InvalidSource(f"split() of {type(source).__name__} gave the same cursor twice: {written}")
    return [cut for cut in written if cut not in (lease.cursor, until)]


def _limited(total: int | None, lease: Lease) -> int | None:
    if lease.limit is None or (total is not None and total <= lease.limit):
        return total
    return lease.limit if total is not None and not isinstance(total, Estimate) else Estimate(lease.limit)


def _compare(lease: Lease, recorded: str | None, present: str | None, *, mend: str) -> None:
    if recorded == present:
        return
    was: Any = loads(recorded) if recorded else {}
    now: Any = loads(present) if present else {}
    changes = {name: (was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)}
    if changes:
        raise SourceChanged(lease.run_id, changes=changes, mend=mend)
