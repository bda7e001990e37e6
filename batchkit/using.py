"""The terms on which a run is started, as `job.using(...)` takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, ParamSpec, TypeAlias

from batchkit.errors import InvalidStart
from batchkit.run import Run
from batchkit.sources.base import MOST_PARTITIONS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

P = ParamSpec("P")

#: A session, or what stands for that of the thread.
AnySession: TypeAlias = "Session | scoped_session[Session]"
IfActive: TypeAlias = Literal["raise", "return"]

_LONGEST_QUEUE = 255


@dataclass(frozen=True, slots=True)
class Terms:
    """
    How a run is started, beside its params.

    Raises:
        InvalidStart: they cannot start a run.
    """

    #: the session in whose transaction the run is written
    session: AnySession | None = None
    #: the queue that its wake-ups go to, where that is not the job's
    queue: str | None = None
    #: names the start: the same key gives the same run for ever
    key: str | None = None
    #: what to do where an unfinished run has the same unique key
    if_active: IfActive = "raise"
    #: into how many partitions it is cut, where that is not the job's number
    partitions: int | None = None
    #: how many workers it has at a time, where that is not the job's number
    max_workers: int | None = None
    #: how many items it works at most
    limit: int | None = None
    #: whether every chunk is rolled back
    dry_run: bool = False
    #: the cursor behind which it begins
    after: object = None

    def __post_init__(self) -> None:
        if self.session is not None and not hasattr(self.session, "get_bind"):
            raise InvalidStart(f"session is a SQLAlchemy Session, or a scoped_session: got {self.session!r}")
        if self.queue is not None and not _is_text(self.queue, _LONGEST_QUEUE):
            raise InvalidStart(f"queue is the name of a queue, 1 to {_LONGEST_QUEUE} characters: got {self.queue!r}")
        if self.key is not None and not _is_text(self.key):
            raise InvalidStart(f"key is a text that names the start, such as 'nightly-2026-11-24': got {self.key!r}")
        if self.if_active not in ("raise", "return"):
            raise InvalidStart(f"if_active is 'raise' or 'return': got {self.if_active!r}")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise InvalidStart(f"limit is a number of items, 1 or more: got {self.limit!r}")
        if self.partitions is not None and (
            type(self.partitions) is not int or not 1 <= self.partitions <= MOST_PARTITIONS
        ):
            raise InvalidStart(f"partitions is a number of ranges, 1 to {MOST_PARTITIONS}: got {self.partitions!r}")
        if self.max_workers is not None and (type(self.max_workers) is not int or self.max_workers < 1):
            raise InvalidStart(f"max_workers is a number of workers, 1 or more: got {self.max_workers!r}")
        if self.limit is not None and (self.partitions or 1) > 1:
            raise InvalidStart(
                f"limit={self.limit} is worked by one worker, since several could not tell who works the last of its "
                f"items; leave out limit or partitions"
            )
        if type(self.dry_run) is not bool:
            raise InvalidStart(f"dry_run is True or False: got {self.dry_run!r}")


#: A start as it is without `using`.
NO_TERMS = Terms()


class Using(Generic[P]):
    """A job with the terms of its next start, as `job.using(...)` gives it."""

    __slots__ = ("_start",)

    def __init__(self, start: Callable[P, Run]) -> None:
        self._start = start

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """
        Start a run on these terms.

        Raises:
            RunActive: another unfinished run has its unique key.
            KeyTaken: the key has started a run with other params or terms.
            InvalidStart: the session is on another database than the kit, or the cursor is none of the source's.
        """
        return self._start(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Start a run, as `start` does, for Celery habits."""
        return self._start(*args, **kwargs)


def _is_text(value: object, longest: int | None = None) -> bool:
    return isinstance(value, str) and bool(value) and (longest is None or len(value) <= longest)
