"""Results that a function has not read to their end when its step ends."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NoReturn

from sqlalchemy import Connection, event

from batchkit.errors import ResultCutOff

_PRUNED_AT = 100


class OpenResults:
    """
    Cuts off, at the end of each step, the results that were not read to their end.

    A stream from the server ends with its transaction, and SQLite's goes on with what the database was before. Cut off
    on all databases alike, it is noticed where the function wants more of it; where it does not, nothing happens.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._connection: Connection | None = None
        self._results: list[Any] = []  # Any: CursorResults, whose cursor is typed as one that is always there
        self._pruned_at = _PRUNED_AT

    def watch(self, connection: Connection) -> None:
        """Take note of what is asked for on *connection* from now on."""
        if connection is not self._connection:
            self._connection = connection
            event.listen(connection, "after_execute", self._take)

    def cut_off(self) -> None:
        """Have those that are open raise `ResultCutOff` where more of them is wanted."""
        self._prune()
        for result in self._results:
            cursor, result.cursor = result.cursor, _CutOff(self._run_id)
            with suppress(Exception):
                cursor.close()
        self._results = []

    def _take(self, *arguments: Any) -> None:  # noqa: ANN401  SQLAlchemy's; the last is the result
        result = arguments[-1]
        if getattr(result, "cursor", None) is None:
            return
        self._results.append(result)
        if len(self._results) > self._pruned_at:
            self._prune()

    def _prune(self) -> None:
        # One that was read to its end has given its cursor back.
        self._results = [result for result in self._results if result.cursor is not None]
        self._pruned_at = max(_PRUNED_AT, 2 * len(self._results))


class _CutOff:
    """Stands where a result had the driver's cursor; closing the result would not end a loop over it well."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def close(self) -> None:
        """Do nothing: that was done."""

    def fetchone(self) -> NoReturn:
        """Refuse."""
        raise ResultCutOff(self._run_id)

    def fetchmany(self, *_: object) -> NoReturn:
        """Refuse."""
        raise ResultCutOff(self._run_id)

    def fetchall(self) -> NoReturn:
        """Refuse."""
        raise ResultCutOff(self._run_id)
