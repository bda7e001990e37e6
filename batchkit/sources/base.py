"""What a source is: the seam between batchkit and whatever gives a job its items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from batchkit.values import Json

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Source(Protocol[T_co]):
    """
    Gives the items of a job, in an order that never changes, from behind any of them.

    Only `read` is needed. What a source can do besides it tells by having the methods of the protocols below.
    A source is made anew for each slice from the params of the run, so it must not keep anything between slices; one
    that is there once for all slices, and keeps something between reads, has the method of `Stateful`.
    """

    # Any: each source has a cursor type of its own, and nobody else looks into it.
    def read(self, after: Any, limit: int, session: Session) -> Iterable[tuple[T_co, Any]]:  # noqa: ANN401
        """
        Give at most *limit* pairs of an item and its cursor, the first that come after the cursor *after*.

        *after* is None at the beginning. Nothing at all means that there is nothing more; fewer than *limit* does
        not. *session* is the chunk's: what is read through it belongs to the chunk's transaction.
        """
        ...


@runtime_checkable
class Coded(Protocol):
    """A source whose cursors are not values that `batchkit.values` can store."""

    def encode(self, cursor: Any) -> Json:  # noqa: ANN401
        """Turn a cursor into JSON."""
        ...

    def decode(self, stored: Json) -> Any:  # noqa: ANN401
        """Turn what `encode` gave into the cursor."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A source that can say how many items it has; asked once, when a run is planned."""

    def count(self, session: Session) -> int:
        """Count the items; an `Estimate` where counting would take long."""
        ...


@runtime_checkable
class Bounded(Protocol[T_co]):
    """A source that can fix its upper end when a run is planned, so that a growing one still ends."""

    def upper(self, session: Session) -> Any:  # noqa: ANN401
        """Give the cursor of the last item that there is now, or None when there is none."""
        ...

    def until(self, upper: Any) -> Source[T_co]:  # noqa: ANN401
        """Give the same source without the items behind *upper*."""
        ...


@runtime_checkable
class Continued(Protocol[T_co]):
    """A source that can leave out its beginning, so that the items of a run that does so too can be counted."""

    def behind(self, after: Any) -> Source[T_co]:  # noqa: ANN401
        """
        Give the same source without the items up to and including the one whose cursor is *after*.

        Raises:
            InvalidSource: *after* cannot be a cursor of it.
        """
        ...


@runtime_checkable
class Splittable(Protocol[T_co]):
    """
    A source that can be cut into ranges, which as many workers read at the same time.

    It is asked when a run is planned, after `until` and `behind` have taken away what the run does not have. One that
    has `behind` is also asked while the run is worked, for what a range still has.
    """

    def split(self, parts: int, session: Session) -> Sequence[Any]:
        """
        Give the cursors at which it is cut, in its order: at most *parts* - 1, for ranges of about as many items each.

        A range begins behind one of them and ends with the next, so that each item is in one range. Fewer are right
        where there are fewer items. It must take a moment however large the source is, and so read no more than some of
        it.

        Raises:
            InvalidSource: it cannot be cut as it is; it says why and what to do.
        """
        ...

    def until(self, upper: Any) -> Source[T_co]:  # noqa: ANN401
        """Give the same source without the items behind *upper*, one of the cursors that `split` gave."""
        ...


@runtime_checkable
class Weighed(Protocol):
    """A source that can say in a moment about how much there is of it, so that the largest range is what is cut."""

    def weigh(self, session: Session) -> int:
        """
        Give about how many items there are, or 0 where it could not be cut in a moment.

        It is asked often, and after `until` and `behind` have left a range: it must not read all of that.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A source that says what its cursors mean, so that a run never goes on with those of another."""

    def identity(self) -> dict[str, Json]:
        """
        Describe what gives a cursor its meaning in the code: kind, key columns, their types and directions.

        A worker whose job gives another identity than the run began with leaves the run to workers that give the same.
        """
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A source whose content must not change while a run reads it."""

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content, such as a file's size and digest. A run whose content changed fails, resumably."""
        ...


@runtime_checkable
class Prefetching(Protocol):
    """A source that asks others than the chunk's database, which may take long and must hold no lock meanwhile."""

    def prefetch(self, after: Any, limit: int) -> None:  # noqa: ANN401
        """
        Fetch what `read` with the same arguments will give, and keep it: the chunk's transaction begins after that.

        It is called before each `read`, and `read` must do without it all the same. An error in it is no fault of an
        item; the job's retry policy says whether it is tried again.
        """
        ...


@runtime_checkable
class ReadAtOnce(Protocol):
    """
    A source of our own that reads a chunk by one statement, and loads what belongs to its rows after that.

    Its read may be sent together with the COMMIT of the chunk before. It goes through the session and nothing else, or,
    where it reads columns and not objects, through a connection.
    """

    @property
    def reads_columns(self) -> bool:
        """Whether `read_by` gives the same as `read`."""
        ...

    def read_by(self, after: Any, limit: int, connection: Connection) -> Sequence[tuple[Any, Any]]:  # noqa: ANN401
        """Read as `read` does, without a session."""
        ...


class NotFetched(Exception):
    """Raised by `read` where only the read has found out what is to be fetched: `prefetch`, and read again."""


@runtime_checkable
class Stateful(Protocol[T_co]):
    """A source that keeps something from read to read, such as an open file: each slice has one of its own."""

    def anew(self) -> Source[T_co]:
        """Give the same source with nothing kept."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A source whose cursors are values of the items themselves, which a function may change."""

    def moved(self) -> str | None:
        """
        Say which part of the cursor of the item that was read last has another value in that item now, if one has.

        It must not ask the database: it is called in every chunk.
        """
        ...


class Estimate(int):
    """A count that may be off."""


#: A run's partitions are rows, and people look at them.
MOST_PARTITIONS = 10_000


def cannot_be_cut(source: object) -> str:
    """Say of a source that is not `Splittable` that it cannot have several partitions, and what can."""
    missing = [name for name in ("split", "until") if not hasattr(source, name)]
    return (
        f"the source {type(source).__name__.strip('_')} cannot be cut into ranges: rows, items, span, csv_rows, "
        f"json_lines, parquet_rows and nested(...) over one of them can; one of your own needs the "
        f"method{'s' * (len(missing) > 1)} {' and '.join(missing)}; leave partitions out where there is no order to cut"
    )
