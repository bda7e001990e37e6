"""The failures of a run as a source, for the run that tries them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from batchkit.model import Failure, Lease
from batchkit.planning import Cursors, check_same, fingerprint_of, identity_of, read_whatever_it_takes
from batchkit.sources.base import Source
from batchkit.store import Store
from batchkit.values import Json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: How far behind the item before it an item is looked for: others may have been written between the two since.
_LOOK = 100


class FailedItems:
    """
    The items of another source that failed in a run and are not done since, in the order in which they failed.

    An item that the source does not have any more is left out; its failure stays open.
    """

    def __init__(
        self,
        source: Source[Any],
        store: Store,
        lease: Lease,
        *,
        version: str | int | None,
        until: int | None = None,
    ) -> None:
        self._source = source
        self._version = version
        self._cursors = Cursors(source)
        self._store = store
        self._lease = lease
        self._until = until
        self._run_id = lease.failures_of or lease.run_id
        self._places: dict[int, str] = {}

    def read(self, after: int | None, limit: int, session: Session) -> Iterable[tuple[Any, int]]:
        """Give at most *limit* of the items whose failures have higher numbers than *after*, and those numbers."""
        found: list[tuple[Any, int]] = []
        last = after or 0
        until = self._until if self._until is not None else self.upper(session) or 0
        self._places = {}
        while len(found) < limit:
            failures = self._store.failures.still_open(
                self._run_id, after=last, until=until, limit=limit - len(found), in_doubt=self._lease.retries_in_doubt
            )
            if not failures:
                break
            last = failures[-1].id
            self._places.update({failure.id: failure.cursor for failure in failures})
            found += [(item, failure.id) for failure in failures for item in self._items(failure, session)]
        return found

    def place_of(self, number: int) -> str:
        """Give the cursor that an item read last has in the source, as JSON text."""
        return self._places[number]

    def count(self, _: Session) -> int:
        """Count the failures that are open."""
        return self._store.failures.count_open(self._run_id, in_doubt=self._lease.retries_in_doubt)

    def upper(self, _: Session) -> int | None:
        """Give the number of the newest failure that is open."""
        return self._store.failures.last_open(self._run_id, in_doubt=self._lease.retries_in_doubt)

    def until(self, upper: int) -> FailedItems:
        """Leave out what fails later."""
        return FailedItems(self._source, self._store, self._lease, version=self._version, until=upper)

    def identity(self) -> dict[str, Json]:
        """Say whose failures they are, and what their cursors mean."""
        return {"kind": "failures", "of": self._run_id, "source": identity_of(self._source, version=self._version)}

    def fingerprint(self) -> dict[str, Json]:
        """Describe the content of the source."""
        return {"source": fingerprint_of(self._source)}

    def check(self) -> None:
        """
        Refuse a source that is not the one in which the items failed.

        Raises:
            SourceChanged: its cursors mean something else now, or its content was changed.
        """
        identity, fingerprint = self._store.records.meaning(self._run_id)
        check_same(self._lease, identity=(identity, identity_of(self._source, version=self._version)))
        check_same(self._lease, fingerprint=(fingerprint, fingerprint_of(self._source)))

    def _items(self, failure: Failure, session: Session) -> Iterable[Any]:
        """Give the item of a failure, if it is still there."""
        after = self._cursors.read(failure.after)
        for limit in (1, _LOOK):
            for item, cursor in read_whatever_it_takes(self._source, after, limit=limit, session=session):
                if self._cursors.write(cursor) == failure.cursor:
                    return [item]
        return []
