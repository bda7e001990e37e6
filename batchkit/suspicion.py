"""
What a partition is suspected of: that whatever lies behind its cursor kills the workers that come there.

An end of a worker is unclean where its lease ran out, or was ended for it, instead of being given back. Why it ended,
the store cannot see: a deploy's SIGKILL looks like an item that brings the process down. So an end counts only if the
worker had written that it enters the very place, and nobody knew of a shutdown; what counts is judged by who saw it.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, replace

#: How many ends that count have items taken one at a time, and then make one of them a killer.
MOST_ENDS = 3


class Death(enum.Enum):
    """What is known of a worker's end."""

    #: its lease ran out: whatever ended it may have ended everything around it
    UNSEEN = "unseen"
    #: its parent saw it die, and lived on
    CHILD = "child"
    #: it fell into a shutdown
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class End:
    """An unclean end of the claim with this fence that counts."""

    fence: int
    #: whether the parent saw it, so that no deploy has ended both
    is_of_child: bool


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of the place that a partition does not get past."""

    #: the `seq` of the partition there: it moves with the cursor
    place: int
    #: the fence of the claim that has entered the place, and with how many items at most
    entered: int | None = None
    items: int = 0
    #: the fence of the claim whose worker knows of a shutdown
    stopping: int | None = None
    #: the fence of the last claim whose end was looked at
    booked: int = 0
    ends: tuple[End, ...] = ()
    #: items are taken one at a time until so many of the partition are passed; None while they are not yet
    until: int | None = None
    #: the chunk size to come back to
    size: int | None = None
    #: whether a person wants the item recorded as a failure, untried
    is_to_skip: bool = False

    @classmethod
    def read(cls, text: str | None) -> Suspicion | None:
        """Read what `write` wrote; None where nothing is suspected."""
        if text is None:
            return None
        values = json.loads(text)
        return cls(**{**values, "ends": tuple(End(**end) for end in values["ends"])})

    def write(self) -> str:
        """Make the text that the store keeps."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def takes_one(self, *, passed: int) -> bool:
        """Say whether items are taken one at a time, once so many of the partition are *passed*."""
        return self.until is not None and passed < self.until

    def is_over(self, *, place: int, passed: int) -> bool:
        """Say whether the partition has got past it."""
        return self.place != place and not self.takes_one(passed=passed)

    def is_killer(self, *, place: int) -> bool:
        """Say whether the one item behind this place has ended its worker as often as is needed."""
        return self.place == place and self.until is not None and len(self.ends) >= MOST_ENDS

    def is_to_pass(self, *, place: int) -> bool:
        """
        Say whether that item is to be recorded as a failure without being tried.

        Only where each end was that of a child alone. One end more came from reading or recording it.
        """
        if not self.is_killer(place=place):
            return False
        return self.is_to_skip or (len(self.ends) == MOST_ENDS and all(end.is_of_child for end in self.ends))

    def needs_person(self, *, place: int, passed: int) -> bool:
        """Say whether only a person can tell what is to become of that item."""
        is_one = self.is_killer(place=place) and self.takes_one(passed=passed)
        return is_one and not self.is_to_pass(place=place)

    def is_killing(self, *, place: int) -> bool:
        """Say whether the work behind this place, which knows no items, has ended its worker as often as is needed."""
        return self.place == place and self.until is not None

    def has_entered(self, *, place: int, fence: int) -> bool:
        """Say whether the claim with *fence* has written that it enters this place."""
        return self.place == place and self.entered == fence

    def enter(self, *, place: int, fence: int, items: int) -> Suspicion:
        """Give what is known once the claim with *fence* enters a place with *items* at most."""
        here = self if self.place == place else replace(self, place=place, ends=(), is_to_skip=False)
        return replace(here, entered=fence, items=items, stopping=None)

    def stop(self, *, place: int, fence: int) -> Suspicion:
        """Give what is known once the worker of the claim with *fence* knows of a shutdown."""
        return replace(self, stopping=fence) if self.has_entered(place=place, fence=fence) else self

    def take_back(self, fence: int) -> Suspicion:
        """Give what is known once the worker of the claim with *fence* turns out to be alive."""
        # Its end may not have been looked at yet.
        ends = tuple(end for end in self.ends if end.fence != fence)
        return replace(self, ends=ends, booked=max(self.booked, fence))


def after_end(known: Suspicion | None, *, fence: int, place: int, passed: int, death: Death) -> Suspicion | None:
    """Give what is known of a partition after the unclean end of the claim with *fence*, which was at *place*."""
    if known is not None and fence <= known.booked:
        return known
    if known is None or known.is_over(place=place, passed=passed):
        # It may have been anywhere, and is not held against the place; the next one will say that it enters.
        return None if death is Death.SHUTDOWN else Suspicion(place=place, booked=fence)
    counts = known.has_entered(place=place, fence=fence) and known.stopping != fence and death is not Death.SHUTDOWN
    if not counts:
        return replace(known, booked=fence)
    ends = (*known.ends, End(fence, is_of_child=death is Death.CHILD))
    if known.until is None and len(ends) >= MOST_ENDS:
        return replace(known, booked=fence, ends=(), until=passed + known.items, size=known.items)
    return replace(known, booked=fence, ends=ends, is_to_skip=False)
