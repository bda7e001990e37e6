"""What a source is: the seam between batchkit and whatever gives a job its items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from batchkit.values import Json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Source(Protocol[T_co]):
    """
    Gives the items of a job, in an order that never changes, from behind any of them.

    Only `read` is needed. What a source can do besides it tells by having the methods of the protocols below.
    A source is made anew for each slice from the params of the run, so it must not keep anything between slices.
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


class Estimate(int):
    """A count that may be off."""
