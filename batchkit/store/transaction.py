"""The transaction of a chunk: the user's session, and the checkpoint that commits with what it wrote."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from batchkit.model import Checkpoint, Lease, Standing
from batchkit.store.database import Database
from batchkit.store.held import Ahead, HeldConnection
from batchkit.store.leases import Leases

_logger = logging.getLogger("batchkit")

SessionFactory: TypeAlias = Callable[..., Session]


class _ChunkSession(Session):
    """The session of a chunk; `with chunk.session:` closes it, and what it then still keeps belongs to the chunk."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        super().close()

    def close(self) -> None:
        self.flush()
        super().close()

    def end(self) -> None:
        """Close it without writing anything."""
        super().close()


class Sessions:
    """
    Makes the sessions of chunks.

    A user's factory that is bound to the store's own engine, or address, is bound to the chunk's transaction instead.
    One that is bound elsewhere is left so, and then a chunk and its checkpoint cannot commit together.
    """

    def __init__(self, database: Database, factory: SessionFactory | None) -> None:
        # A scoped_session keeps one session for the thread; a chunk needs one of its own, made as the scope makes them.
        factory = getattr(factory, "session_factory", factory)
        self._factory = factory
        #: whether they are as we make them, and nobody else has a say in what they do
        self.are_plain = factory is None
        self.is_ours = factory is None or _is_bound_to(factory, database.engine)

    def joined(self, connection: Connection) -> Session:
        """Make a session in the transaction of *connection*, whose own commit() commits nothing."""
        if self._factory is None:
            return _ChunkSession(bind=connection, join_transaction_mode="rollback_only", expire_on_commit=False)
        return self._factory(bind=connection, join_transaction_mode="rollback_only")

    def apart(self) -> Session:
        """Make a session on the user's other database."""
        if self._factory is None:
            message = "there is no session factory"
            raise RuntimeError(message)
        return self._factory()


class KeptSession:
    """A session that goes on from one transaction to the next, until one is rolled back or it is ended."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def end(self) -> None:
        """Close it without writing anything."""
        session, self.session = self.session, None
        if session is not None:
            _end(session)


class ChunkTransaction:
    """One transaction: opened, written through `session` or `connection`, then committed with a checkpoint."""

    def __init__(
        self,
        held: HeldConnection,
        sessions: Sessions,
        *,
        idle: float,
        is_dry_run: bool = False,
        kept: KeptSession | None = None,
    ) -> None:
        self._held = held
        self._kept = kept
        self._idle = idle
        self._is_dry_run = is_dry_run
        self._is_joined = sessions.is_ours
        self._sessions = sessions
        self._session = None if kept is None else kept.session
        if self._is_joined:
            held.begin(idle=idle)
        if sessions.are_plain:
            # Many functions, and sources, need none.
            return
        try:
            self._open_session()
        except BaseException:
            # The factory is the user's. Left open, the transaction would keep even us from recording what it raised.
            held.rollback()
            raise

    @property
    def session(self) -> Session:
        """The session that writes in this transaction, or on the user's other database."""
        return self._session or self._open_session()

    def _open_session(self) -> Session:
        if self._session is None:
            sessions = self._sessions
            self._session = sessions.joined(self._held.connection) if self._is_joined else sessions.apart()
            if self._kept is not None:
                self._kept.session = self._session
        return self._session

    @property
    def connection(self) -> Connection:
        """The Core connection that `session` writes through."""
        if not self._is_joined:
            return self.session.connection()
        # A cursor of the driver's, which can be had from it, begins nothing.
        self._held.begin_now()
        return self._held.connection

    def end_reading(self) -> None:
        """
        Commit, and let the next statement begin again: until then no lock is held and no transaction is idle.

        What the session has loaded stays, and stays its own.
        """
        if self._is_joined:
            self._held.commit()
            self._held.begin_when_used(idle=self._idle)
            return
        expires, self.session.expire_on_commit = self.session.expire_on_commit, False
        self.session.commit()
        self.session.expire_on_commit = expires
        if self._held.is_begun:
            self._held.commit()

    def store_connection(self) -> Connection:
        """Give the connection to the store's own tables, in a transaction that commits with this one."""
        if not self._held.is_begun:
            self._held.begin(idle=self._idle)
        return self._held.connection

    def flush(self) -> None:
        """
        Send what the session still keeps, and make sure that the function left the transaction open.

        Raises:
            ChunkTorn: it did not.
        """
        if self._session is not None:
            self._flush(self._session)
        if self._is_joined:
            self._held.check()

    @staticmethod
    def _flush(session: Session) -> None:
        # The events that a session's own commit() would fire; what their listeners write belongs to the chunk.
        while (nested := session.get_nested_transaction()) is not None:
            # A savepoint that the function left open: a commit goes through it, so its end is ours to make.
            nested.commit()
        session.dispatch.before_commit(session)
        session.flush()

    def keep_nothing_of_dry_run(self) -> None:
        """Undo, in a dry run, what the function wrote; what the store writes from here on commits without it."""
        if self._is_dry_run:
            self._undo()
            self._leave_session()

    def checkpoint(
        self,
        leases: Leases,
        lease: Lease,
        checkpoint: Checkpoint,
        *,
        goes_on: bool = False,
        read: Callable[[], bool] | None = None,
    ) -> tuple[Lease, Standing]:
        """
        Move the partition on in this transaction; nothing may come between this and `commit`.

        Where the database can, the COMMIT is under way with it, and `commit` only says what came of it. With *goes_on*
        the next transaction is begun with it, too, where nobody is to be told of the commit first, by *read* where that
        is given, which reads by one statement.

        Raises:
            LeaseLost: the lease is over; everything must be rolled back.
        """
        self.store_connection()
        return leases.checkpoint(self._held, lease, checkpoint, ahead=self._ahead(read) if goes_on else self._alone())

    def _alone(self) -> Ahead | None:
        # Where the function writes to another database, that is to commit before.
        return Ahead() if self._is_joined else None

    def _ahead(self, read: Callable[[], bool] | None) -> Ahead | None:
        if not (self._is_joined and self._is_told_to_nobody and self._held.may_chain):
            return self._alone()
        return Ahead(begins=self._idle, read=read)

    @property
    def _is_told_to_nobody(self) -> bool:
        return not (self._is_dry_run or (self._session is not None and self._session.dispatch.after_commit))

    def commit(self) -> None:
        """Commit; where the writes are in another database, they commit first, so that a crash between repeats them."""
        if self._is_dry_run:
            # There is nothing of the session's to commit, and nobody is told of a commit.
            self._held.commit()
            self._leave_session()
            return
        if not self._is_joined:
            self.session.commit()
        self._held.commit()
        try:
            try:
                if self._is_joined and self._session is not None:
                    self._session.dispatch.after_commit(self._session)
            finally:
                self._leave_session()
        except Exception:
            # The chunk is committed, and nothing that a listener raises changes that.
            _logger.exception("after the commit of a chunk its session raised")

    def leave(self) -> None:
        """Let go of the session, and leave the connection to who has to roll it back."""
        self._end_session()

    def rollback(self) -> None:
        """Undo everything."""
        self._undo()
        self._end_session()

    def _undo(self) -> None:
        if not self._is_joined:
            self.session.rollback()
        self._held.rollback()

    def _leave_session(self) -> None:
        if self._kept is None:
            self._end_session()
        elif self._session is not None:
            # What it has loaded is read anew: others may have written since.
            self._session.expire_all()

    def _end_session(self) -> None:
        if self._kept is not None:
            self._kept.end()
        elif self._session is not None:
            _end(self._session)


def _end(session: Session) -> None:
    if isinstance(session, _ChunkSession):
        session.end()
    else:
        session.close()


def _is_bound_to(factory: SessionFactory, engine: Engine) -> bool:
    session = factory()
    try:
        if getattr(factory, "kw", {}).get("binds"):
            return False
        bind = session.bind
        if isinstance(bind, Connection):
            bind = bind.engine
        return bind is not None and (bind is engine or bind.url == engine.url)
    finally:
        session.close()
