"""How fast a run may be worked, and what may hold it off."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidJob
from batchkit.sizing import Adaptive

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: The slowest rate: an item a day.
_LEAST_RATE = 1 / 86_400
#: A shorter hold would ask again and again; after a longer one it is asked whether it still holds.
_SHORTEST_HOLD = 1.0
_LONGEST_HOLD = 3600.0
_DEFAULT_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class HoldOff:
    """What a hold returns to hold a run off for *seconds*, with the reason that people are shown."""

    seconds: Duration
    reason: str = ""


Holding: TypeAlias = "HoldOff | Duration | None"
#: A function that says for how long a run is to be held off; it may take a connection to the run's database.
Hold: TypeAlias = "Callable[[], Holding] | Callable[[Connection], Holding]"


class InvalidHolding(Exception):
    """A hold has returned what is no time."""


@dataclass(frozen=True, slots=True)
class AskedHold:
    """A hold as it is asked."""

    name: str
    function: Callable[..., object]
    takes_connection: bool

    def holding(self, returned: object) -> HoldOff | None:
        """
        Read what the function has *returned*; None where the run may go on.

        Raises:
            InvalidHolding: it is no time.
        """
        off = returned if isinstance(returned, HoldOff) else HoldOff(returned or 0.0)  # type: ignore[arg-type]
        number = off.seconds.total_seconds() if isinstance(off.seconds, timedelta) else off.seconds
        if type(number) not in (int, float) or math.isnan(number):
            message = (
                f"it returned {returned!r}; a hold returns seconds, a timedelta or HoldOff(seconds, reason), "
                f"or None to go on"
            )
            raise InvalidHolding(message)
        return HoldOff(min(max(number, _SHORTEST_HOLD), _LONGEST_HOLD), off.reason) if number > 0 else None


@dataclass(frozen=True, slots=True)
class Throttle:
    """
    Work a run at most so fast, and not at all while something else is in need.

    Args:
        rate: items per second, over the whole run and all of its workers. A chunk then takes at most a second's worth.
            Of a resumable it is in steps per second.
        hold: a function, or several, asked before a chunk: for how many seconds is the run to be given back, so that
            it costs no worker? None or 0 lets it go on. It takes nothing, or a connection to the run's database, on
            which each statement is a transaction of its own. `batchkit.holds` has some.
        every: how long the answer of the holds is good for, in each slice.

    Raises:
        InvalidJob: one of them is of the wrong kind, or there is neither a rate nor a hold.
    """

    rate: float | None = None
    hold: Hold | Sequence[Hold] | None = None
    every: Duration = timedelta(seconds=_DEFAULT_EVERY)
    #: the holds, in the order in which they are asked
    holds: tuple[AskedHold, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.rate is not None and (type(self.rate) not in (int, float) or not _LEAST_RATE <= self.rate < math.inf):
            raise InvalidJob(
                f"Throttle: rate is a number of items per second, one a day ({_LEAST_RATE:.2g}) or more: "
                f"got {self.rate!r}"
            )
        given = self.hold
        listed: tuple[object, ...] = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
        if self.rate is None and not listed:
            raise InvalidJob("Throttle: give a rate, a hold or both: Throttle(rate=1000), Throttle(hold=my_check)")
        object.__setattr__(self, "holds", tuple(_asked(each) for each in listed))
        try:
            seconds(self.every, name="every")
        except (TypeError, ValueError) as error:
            raise InvalidJob(f"Throttle: {error}") from None

    @property
    def every_seconds(self) -> float:
        """How long the answer of the holds is good for."""
        return seconds(self.every, name="every")

    def capped(self, chunk_size: int | Adaptive) -> int | Adaptive:
        """Let no chunk take more than a second's worth of items, so that the rate is smooth."""
        if self.rate is None:
            return chunk_size
        most = max(1, int(self.rate))
        if isinstance(chunk_size, int):
            return min(chunk_size, most)
        return replace(chunk_size, minimum=min(chunk_size.minimum, most), maximum=min(chunk_size.maximum, most))


def _asked(hold: object) -> AskedHold:
    right = "a function that returns for how many seconds to hold off, or None: `def busy() -> float | None`"
    if not callable(hold) or isinstance(hold, type):
        raise InvalidJob(f"Throttle: a hold is {right}: got {hold!r}")
    plain = hold.func if isinstance(hold, functools.partial) else hold
    called = plain if inspect.isroutine(plain) else getattr(plain, "__call__", None)  # noqa: B004  as of `retry`
    if inspect.iscoroutinefunction(called) or inspect.isgeneratorfunction(called):
        raise InvalidJob(f"Throttle: the hold {_name_of(hold)} is a coroutine or a generator; give {right}")
    try:
        signature = inspect.signature(hold)
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"Throttle: the hold {_name_of(hold)} cannot be looked into ({error}); give {right}") from None
    takes_connection = _takes(signature, 1)
    if not takes_connection and not _takes(signature, 0):
        raise InvalidJob(
            f"Throttle: the hold {_name_of(hold)}{signature} takes more than it is given: nothing, or a connection to "
            f"the run's database: `def busy(connection: Connection) -> float | None`"
        )
    return AskedHold(_name_of(hold), hold, takes_connection)


def _takes(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def _name_of(hold: object) -> str:
    name = getattr(getattr(hold, "func", hold), "__name__", None)
    return str(name) if name else type(hold).__name__
