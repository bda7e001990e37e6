"""The items of one source for each item of another."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from batchkit.errors import InvalidSource
from batchkit.sources.base import (
    Bounded,
    Coded,
    Continued,
    Fingerprinted,
    Identified,
    NotFetched,
    Prefetching,
    Source,
    Splittable,
    Stateful,
)
from batchkit.values import dumps

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from batchkit.values import Json

A = TypeVar("A")
B = TypeVar("B")

_logger = logging.getLogger("batchkit")

#: How many outer items are read together at most, where each has few inner ones.
_BLOCK = 100
#: How far behind the one before it an outer item is looked for: others may have been written between the two since.
_LOOK = 100
_CURSOR_PARTS = 4
#: What the meaning of an inner source never is.
_BEHIND_ALL = ""


def nested(outer: Source[A], inner: Callable[[A], Source[B]]) -> Source[tuple[A, B]]:
    """
    Take pairs of an outer item and each item of the source that *inner* makes of it.

    A run that goes on inside an outer item reads that item again, and the inner source from behind its cursor. An inner
    source may be empty. Its content must not change meanwhile where it has a fingerprint, as files do.

    Raises:
        InvalidSource: they are no source and no function. In a run: *inner* gives no source, or another one than
            before for the same outer item.
    """
    given: tuple[object, object] = (outer, inner)
    if not isinstance(given[0], Source) or not callable(given[1]):
        raise InvalidSource(
            f"nested() takes a source and a function of its items that gives a source: got {outer!r} and {inner!r}; "
            f"write nested(rows(...), lambda user: rows(...))"
        )
    if isinstance(given[0], _Nested) or not isinstance(outer, Splittable):
        return _BoundedNested(outer, inner) if isinstance(outer, Bounded) else _Nested(outer, inner)
    return _SplitBoundedNested(outer, inner) if isinstance(outer, Bounded) else _SplitNested(outer, inner)


@dataclass(frozen=True)
class _Place:
    """
    A cursor: the outer cursor before the outer item, its own, the inner one, and what gives that one its meaning.

    The first three are as they are stored, so that no inner source is needed to read them. Where a partition is cut, it
    is the place behind all inner items of an outer one.
    """

    before: Any
    own: Any
    inside: Any
    meaning: str

    @property
    def is_behind_all(self) -> bool:
        return self.meaning == _BEHIND_ALL


@dataclass(frozen=True)
class _Outer(Generic[A]):
    """An outer item, the stored cursors before it and of it, and where in it work goes on, unless at its beginning."""

    item: A
    before: Any
    own: Any
    place: _Place | None = None


@dataclass
class _Inner:
    """The inner source of one outer item, and the cursor in it behind which is to be fetched."""

    own: Any
    source: Source[Any]
    after: Any = None
    is_fetched: bool = False
    meaning: str = field(default="", init=False)


class _Nested(Generic[A, B]):
    def __init__(self, outer: Source[A], inner: Callable[[A], Source[B]], *, begin: Any = None) -> None:  # noqa: ANN401
        self._outer = outer
        self._make_inner = inner
        self._begin = begin
        #: the inner source that fetches before a read, once a read has come upon it
        self._fetching: _Inner | None = None
        #: the places, as JSON text, behind which such sources were found to have nothing since a read gave something
        self._ended: set[str] = set()

    def prefetch(self, after: Any, limit: int) -> None:  # noqa: ANN401
        """Fetch for the inner source that the last read has come upon, and for the outer one."""
        after = self._begin if after is None else after
        place = None if after is None else _checked(after)
        if isinstance(self._outer, Prefetching):
            before = None if place is None else place.own if place.is_behind_all else place.before
            self._outer.prefetch(_decoded(self._outer, before), 1)
        inner = self._fetching
        if inner is None or not isinstance(inner.source, Prefetching):
            return
        if place is not None and place.own == inner.own:
            inner.after = _decoded(inner.source, place.inside)
        inner.source.prefetch(inner.after, limit)
        inner.meaning = inner.meaning or _meaning_of(inner.source)
        inner.is_fetched = True

    def read(self, after: Any, limit: int, session: Session) -> list[tuple[tuple[A, B], list[Any]]]:  # noqa: ANN401
        """Give the pairs behind *after*."""
        found = self._read(after, limit, session)
        self._ended.clear()
        return found

    def _read(self, after: Any, limit: int, session: Session) -> list[tuple[tuple[A, B], list[Any]]]:  # noqa: ANN401
        after = self._begin if after is None else after
        place = None if after is None else _checked(after)
        found: list[tuple[tuple[A, B], list[Any]]] = []
        own = None
        if place is not None:
            own = place.own
            for item in [] if place.is_behind_all else self._again(place, session):
                if not self._take(_Outer(item, place.before, own, place), limit, session, found):
                    return found
        block = 1
        while len(found) < limit:
            outer = list(self._outer.read(_decoded(self._outer, own), block, session))
            if not outer:
                break
            for item, cursor in outer:
                before, own = own, _encoded(self._outer, cursor)
                if not self._take(_Outer(item, before, own), limit, session, found):
                    return found
            block = min(block * 2, _BLOCK)
        return found

    def behind(self, after: Any) -> Source[tuple[A, B]]:  # noqa: ANN401
        """Give the same pairs without those up to the one at *after*."""
        _checked(after)
        return type(self)(self._outer, self._make_inner, begin=after)

    def anew(self) -> Source[tuple[A, B]]:
        """Give the same source with nothing kept."""
        outer = self._outer.anew() if isinstance(self._outer, Stateful) else self._outer
        return type(self)(outer, self._make_inner, begin=self._begin)

    def identity(self) -> dict[str, Json]:
        """Describe the outer source; what an inner one is stands in each cursor."""
        return {"kind": "nested", "outer": _identity_of(self._outer)}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content of the outer source."""
        return self._outer.fingerprint() if isinstance(self._outer, Fingerprinted) else {}

    def _again(self, place: _Place, session: Session) -> list[A]:
        """Give the outer item at *place*, if it is still there."""
        before = _decoded(self._outer, place.before)
        for limit in (1, _LOOK):
            for item, cursor in self._outer.read(before, limit, session):
                if _encoded(self._outer, cursor) == place.own:
                    return [item]
        _logger.warning("an outer item is gone, and what was left of its inner items with it", extra={"at": place.own})
        return []

    def _take(self, outer: _Outer[A], limit: int, session: Session, found: list[tuple[tuple[A, B], list[Any]]]) -> bool:
        """Take the inner items of an outer one; tell whether those were all, and there is room for others."""
        inner, place = self._inner_of(outer), outer.place
        inner_after = None if place is None else _decoded(inner.source, place.inside)
        while len(found) < limit:
            if self._ended and _key(inner, inner_after) in self._ended:
                return True
            if isinstance(inner.source, Prefetching) and not (inner.is_fetched and inner.after == inner_after):
                return self._wait_for(inner, inner_after, found)
            inner.meaning = inner.meaning or _meaning_of(inner.source)
            if place is not None and place.meaning != inner.meaning:
                raise InvalidSource(
                    f"the inner source of the outer item {outer.own!r} is another than the one that was begun, or its "
                    f"content was changed; put back what it was and resume the run, or start a new one"
                )
            try:
                read = list(inner.source.read(inner_after, limit - len(found), session))
            except NotFetched:
                return self._wait_for(inner, inner_after, found)
            if not read:
                if isinstance(inner.source, Prefetching):
                    self._ended.add(_key(inner, inner_after))
                return True
            for inner_item, cursor in read:
                at = [outer.before, outer.own, _encoded(inner.source, cursor), inner.meaning]
                found.append(((outer.item, inner_item), at))
            inner_after = read[-1][1]
        return False

    def _inner_of(self, outer: _Outer[A]) -> _Inner:
        if self._fetching is not None and self._fetching.own == outer.own:
            return self._fetching
        # Made anew for each read: what it has of the outer item belongs to the session.
        source: object = self._make_inner(outer.item)
        if not isinstance(source, Source):
            raise InvalidSource(
                f"the inner function of nested() gave {source!r} for {outer.item!r}, which is no source"
            )
        return _Inner(outer.own, source)

    def _wait_for(self, inner: _Inner, after: Any, found: list[Any]) -> bool:  # noqa: ANN401
        """Let *inner* fetch before the next read; this one ends with what it has."""
        inner.after, inner.is_fetched = after, False
        self._fetching = inner
        if not found:
            raise NotFetched
        return False


class _BoundedNested(_Nested[A, B]):
    """Ends with the outer item that was the last when the run was planned."""

    def upper(self, session: Session) -> Any:  # noqa: ANN401
        """Give the cursor of the last outer item."""
        upper = self._outer.upper(session) if isinstance(self._outer, Bounded) else None
        return None if upper is None else _encoded(self._outer, upper)

    def until(self, upper: Any) -> Source[tuple[A, B]]:  # noqa: ANN401
        """Give the same pairs without those of outer items behind *upper*."""
        if not isinstance(self._outer, Bounded):
            return self
        return type(self)(self._outer.until(_decoded(self._outer, upper)), self._make_inner, begin=self._begin)


class _SplitNested(_Nested[A, B]):
    """Can be cut between outer items."""

    def split(self, parts: int, session: Session) -> list[list[Any]]:
        """Cut it where the outer source is cut."""
        outer = self._outer
        if self._begin is not None:
            place = _checked(self._begin)
            outer = outer.behind(_decoded(outer, place.own)) if isinstance(outer, Continued) else outer
        cuts = outer.split(parts, session) if isinstance(outer, Splittable) else ()
        return [[None, _encoded(outer, cut), None, _BEHIND_ALL] for cut in cuts]

    def until(self, upper: Any) -> Source[tuple[A, B]]:  # noqa: ANN401
        """Give the same pairs without those of outer items behind *upper*: a cut, or the last outer cursor."""
        own = _checked(upper).own if _is_cut(upper) else upper
        outer: object = self._outer
        if not isinstance(outer, Bounded | Splittable):
            return self
        return type(self)(outer.until(_decoded(self._outer, own)), self._make_inner, begin=self._begin)


class _SplitBoundedNested(_SplitNested[A, B], _BoundedNested[A, B]):
    """Both."""


def _key(inner: _Inner, after: Any) -> str:  # noqa: ANN401
    return dumps([inner.own, _encoded(inner.source, after)] if after is not None else [inner.own], where="a place")


def _is_cut(cursor: Any) -> bool:  # noqa: ANN401
    is_place = isinstance(cursor, list | tuple) and len(cursor) == _CURSOR_PARTS
    return is_place and cursor[0] is None and cursor[2] is None and cursor[3] == _BEHIND_ALL


def _checked(after: Any) -> _Place:  # noqa: ANN401
    if isinstance(after, list | tuple) and len(after) == _CURSOR_PARTS and isinstance(after[-1], str):
        return _Place(*after)
    raise InvalidSource(f"{after!r} is not a cursor of nested(): take one that a run has shown, such as in a failure")


def _encoded(source: Source[Any], cursor: Any) -> Any:  # noqa: ANN401
    return source.encode(cursor) if isinstance(source, Coded) else cursor


def _decoded(source: Source[Any], stored: Any) -> Any:  # noqa: ANN401
    return source.decode(stored) if stored is not None and isinstance(source, Coded) else stored


def _identity_of(source: Source[Any]) -> dict[str, Json]:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    return source.identity() if isinstance(source, Identified) else {"kind": kind}


def _meaning_of(source: Source[Any]) -> str:
    """Say in short what cursors of *source* mean: its identity and its content."""
    content = source.fingerprint() if isinstance(source, Fingerprinted) else None
    described = dumps([_identity_of(source), content], where="what describes the inner source")
    return hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
