"""The limit: a keyset loop with a commit per chunk, which nobody can resume."""

from __future__ import annotations

from benchmarks.peers import rows
from benchmarks.peers.rows import Work


def start(work: Work) -> None:
    """Do all of it, here."""
    after = 0
    with rows.engine().connect() as connection:
        while found := connection.execute(rows.behind, {"after": after, "size": work.size}).all():
            after = found[-1].id
            rows.change(connection, found[0].id, after)
            connection.commit()
