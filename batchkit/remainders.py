"""What is left of a range while it is worked: about how much that is, and where it can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from batchkit.planning import Cursors
from batchkit.sources.base import Bounded, Continued, Prefetching, Source, Splittable, Weighed

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def can_be_cut_again(source: Source[Any]) -> bool:
    """Tell whether what is left of a range of *source* can be cut."""
    return isinstance(source, Splittable) and isinstance(source, Continued)


def remainder(source: Source[Any], *, after: str | None, until: str | None) -> Source[Any]:
    """Give what of a source lies behind the cursor *after*, up to and with *until*; both are JSON text."""
    cursors = Cursors(source)
    if until is not None and _ends(source):
        source = source.until(cursors.read(until))
    # A source of the user's may lose this on the way.
    if after is not None and isinstance(source, Continued):
        source = source.behind(cursors.read(after))
    return source


def weight(left: Source[Any], session: Session) -> int | None:
    """Say about how many items are left; None where the source does not know."""
    return left.weigh(session) if isinstance(left, Weighed) else None


def cuts(left: Source[Any], parts: int, session: Session, *, after: str | None) -> list[str]:
    """
    Give the cursors, as JSON text, at which what is left behind *after* is cut into at most *parts* ranges.

    Each range is seen to have an item behind *after*: so a source whose `split` or `until` forgets where it begins, and
    gives a cursor that was passed, has nothing done twice by it. One that asks others is believed.
    """
    if parts == 1 or not isinstance(left, Splittable):
        return []
    cursors = Cursors(left)
    found = list(left.split(parts, session))[: parts - 1]
    if not isinstance(left, Prefetching):
        found = _with_items_between(left, found, session, before=cursors.read(after))
    return list(dict.fromkeys(cursors.write(cut) for cut in found))


def _with_items_between(left: Source[Any], found: list[Any], session: Session, *, before: object) -> list[Any]:
    kept: list[Any] = []
    for cut in found:
        if _ends(left) and _has_item(left.until(cut), before, session):
            kept.append(cut)
            before = cut
    return kept if not kept or _has_item(left, before, session) else kept[:-1]


def _ends(source: Source[Any]) -> TypeGuard[Bounded[Any] | Splittable[Any]]:
    return isinstance(source, Bounded | Splittable)


def _has_item(source: Source[Any], after: object, session: Session) -> bool:
    return bool(list(source.read(after, 1, session))[:1])
