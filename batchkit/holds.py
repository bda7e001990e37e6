"""
Holds that are ready to use: they ask PostgreSQL whether it is in need.

Each makes a function for `Throttle(hold=...)`. The server shows the sessions of other users only to members of
`pg_monitor`: `GRANT pg_monitor TO` the user that workers connect as.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidHold, InvalidJob
from batchkit.store import needs
from batchkit.throttle import HoldOff

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import DeclarativeBase

__all__ = ["HoldOff", "dead_tuples", "long_transactions", "replica_lag"]

_Asking: TypeAlias = "Callable[[Connection], HoldOff | None]"

_HOLD_SECONDS = 30.0
#: In a table with fewer dead rows their share says nothing.
_FEWEST_DEAD = 1000


def replica_lag(most: Duration = 10.0, *, hold_for: Duration = _HOLD_SECONDS) -> _Asking:
    """
    Hold a run off for *hold_for* while a replica is more than *most* behind in replaying what was committed.

    Replicas that are not connected are not waited for.

    Raises:
        InvalidJob: a duration is none.
    """
    most_seconds, hold_seconds = _checked("replica_lag", most=most, hold_for=hold_for)

    def replica_lag(connection: Connection) -> HoldOff | None:
        _check_database(connection, "replica_lag")
        found = needs.replicas(connection)
        if any(each.state is None for each in found):
            raise InvalidHold(
                "replica_lag may not see how far the replicas are behind; GRANT pg_monitor TO the user that workers "
                "connect as"
            )
        for slowest in found[:1]:
            if slowest.seconds is not None and slowest.seconds > most_seconds:
                reason = f"the replica {slowest.name} is {slowest.seconds:.1f} s behind, at most {most_seconds:g} s"
                return HoldOff(hold_seconds, reason)
        return None

    return replica_lag


def long_transactions(most: Duration = 300.0, *, hold_for: Duration = _HOLD_SECONDS) -> _Asking:
    """
    Hold a run off for *hold_for* while another session in its database has had a transaction open for more than *most*.

    While one is open, no row that was updated or deleted since can be cleaned up. The server's own work, such as
    autovacuum, does not count; the chunks of other workers do, so *most* must be longer than they take.

    Raises:
        InvalidJob: a duration is none.
    """
    most_seconds, hold_seconds = _checked("long_transactions", most=most, hold_for=hold_for)

    def long_transactions(connection: Connection) -> HoldOff | None:
        _check_database(connection, "long_transactions")
        oldest = needs.oldest_transaction(connection)
        if oldest is None or oldest.seconds <= most_seconds:
            return None
        who = f"{oldest.pid} ({oldest.application})" if oldest.application else str(oldest.pid)
        reason = f"a transaction of process {who} is open for {oldest.seconds:.1f} s, at most {most_seconds:g} s"
        return HoldOff(hold_seconds, reason)

    return long_transactions


def dead_tuples(
    table: str | Table | type[DeclarativeBase],
    *,
    share: float = 0.2,
    most: int | None = None,
    hold_for: Duration = _HOLD_SECONDS,
) -> _Asking:
    """
    Hold a run off for *hold_for* while too many rows of a table are dead, so that vacuum catches up.

    Nothing but vacuum lets the run go on then: where autovacuum is off for the table, or a transaction that is open
    keeps the rows, it waits until that ends.

    Args:
        table: its name, with the schema where that is not in the search path; or a mapped class, or a table.
        share: how many of its rows may be dead, 0.2 for a fifth; it is judged from 1000 dead rows on.
        most: how many may be dead, in place of a share.
        hold_for: how long the run is held each time.

    Raises:
        InvalidJob: an argument is of the wrong kind.
    """
    (hold_seconds,) = _checked("dead_tuples", hold_for=hold_for)
    if most is not None and (type(most) is not int or most < 1):
        raise InvalidJob(f"dead_tuples: most is a number of rows, 1 or more: got {most!r}")
    if type(share) not in (int, float) or not 0 < share < 1:
        raise InvalidJob(f"dead_tuples: share is more than 0 and less than 1, such as 0.2: got {share!r}")
    named: Any = getattr(table, "__table__", table)  # Any: what is mapped need be no Table to type checkers
    if not isinstance(named, str) and not hasattr(named, "foreign_keys"):
        raise InvalidJob(f"dead_tuples: table is a name, a mapped class or a table: got {table!r}")

    def dead_tuples(connection: Connection) -> HoldOff | None:
        _check_database(connection, "dead_tuples")
        rows = needs.dead_rows(connection, named)
        if rows is None:
            raise InvalidHold(f"dead_tuples: there is no table {named} in {connection.engine.url.database}")
        allowed = max(share * (rows.dead + rows.live), _FEWEST_DEAD) if most is None else most
        if rows.dead <= allowed:
            return None
        return HoldOff(hold_seconds, f"{rows.dead:,} rows of {named} are dead, at most {allowed:,.0f} of them may be")

    return dead_tuples


def _checked(hold: str, **durations: Duration) -> tuple[float, ...]:
    try:
        return tuple(seconds(duration, name=name) for name, duration in durations.items())
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"{hold}: {error}") from None


def _check_database(connection: Connection, hold: str) -> None:
    name = connection.dialect.name
    if name != "postgresql":
        raise InvalidHold(
            f"{hold} asks PostgreSQL, but the runs are kept in {name}; leave it out, or give a function of your own: "
            f"Throttle(hold=my_check)"
        )
