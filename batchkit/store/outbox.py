"""What is done once a session of the user's has committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from batchkit.using import AnySession

_logger = logging.getLogger("batchkit")

#: An open transaction, as a connection.
Tx: TypeAlias = Connection

_NAME = "batchkit_outbox"


def session_itself(session: AnySession) -> Session:
    """Give the session that *session* stands for in this thread."""
    return session() if isinstance(session, scoped_session) else session


def after_commit(session: Session, step: Callable[[], bool]) -> None:
    """
    Do *step* once *session* has committed; not at all where it is rolled back.

    A session that was given a connection may commit without committing: in a chunk, in a test. There *step* is done at
    each of its commits until it says that it has found what it was waiting for.
    """
    outbox = session.info.get(_NAME)
    if outbox is None:
        outbox = session.info[_NAME] = _Outbox(session)
    outbox.add(step)


class _Outbox:
    def __init__(self, session: Session) -> None:
        self._steps: list[Callable[[], bool]] = []
        self._is_committed = False
        self._may_not_be_the_last = isinstance(session.bind, Connection)
        event.listen(session, "after_commit", self._on_commit)
        event.listen(session, "after_transaction_end", self._on_end)

    def add(self, step: Callable[[], bool]) -> None:
        self._steps.append(step)

    def _on_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return
        self._is_committed = True
        if self._may_not_be_the_last:
            self._steps = [step for step in self._steps if not _done(step)]

    def _on_end(self, _: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        was_committed, self._is_committed = self._is_committed, False
        if was_committed and self._may_not_be_the_last:
            return
        steps, self._steps = self._steps, []
        if was_committed:
            # Not before the session has given its connection back: with all of the pool in sessions that commit, each
            # would wait for another.
            for step in steps:
                _done(step)


def _done(step: Callable[[], bool]) -> bool:
    try:
        return step()
    except Exception:
        # The user's commit has succeeded, and nothing here changes that.
        _logger.exception("after a commit a run could not be woken up; a sweep does it")
        return True
