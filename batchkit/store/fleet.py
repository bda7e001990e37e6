"""The fleet: which workers are there, what each holds, and what waits for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Float,
    Integer,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.engine import RowMapping
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.selectable import Select

from batchkit.busy import (
    Busy,
    BusySlice,
    PresentWorker,
    Waiting,
    is_interruptible,
    remaining_seconds,
    summed_up,
)
from batchkit.model import RunId
from batchkit.states import WORKABLE, PartitionState
from batchkit.store.clock import UtcTime
from batchkit.store.database import Database
from batchkit.store.statements import Statements

#: How often a worker says that it is there, and for how long it counts as there after that.
ATTEND_EVERY_SECONDS = 10.0
_PRESENT_SECONDS = 35.0
#: What is due so soon waits already.
_SOON_SECONDS = 1.0
#: A worker that was killed leaves its row behind; it is shown to nobody, and removed by one that comes later.
_FORGOTTEN_SECONDS = 3600.0


class FleetStatements(Statements):
    """The statements about workers, and about what they hold."""

    def held_and_waiting(self) -> CompoundSelect[Any]:
        """
        Read what is held by a live lease, and count by queue what waits for a worker, and since when.

        It is one statement: between two, a partition that is claimed or handed on would be in neither.
        """
        return union_all(self._held(), self._waiting())

    def _held(self) -> Select[Any]:
        run, partition = self.run.c, self.partition.c
        return (
            select(
                run.queue,
                run.id.label("run_id"),
                run.job,
                partition.number,
                partition.worker,
                partition.claimed_at,
                partition.checkpointed_at,
                partition.chunk_seconds,
                partition.working_seconds,
                partition.is_protected,
                self.clock.now().label("read_at"),
                type_coerce(null(), Integer).label("ready"),
                type_coerce(null(), UtcTime).label("since"),
            )
            .join(self.run, run.id == partition.run_id)
            .where(partition.worker.is_not(None), self.is_live())
        )

    def _waiting(self) -> Select[Any]:
        run, partition = self.run.c, self.partition.c
        since = func.coalesce(partition.lease_expires_at, partition.due_at, type_=partition.due_at.type)
        is_ready = and_(self.is_free(), self._may_be_claimed())
        each = (
            select(
                run.queue,
                run.max_workers,
                func.count(case((is_ready, 1))).label("ready"),
                func.count(case((self.is_live(), 1))).label("held"),
                func.min(case((is_ready, since))).label("since"),
            )
            .join_from(self.partition, self.run, run.id == partition.run_id)
            # For the indexes; what it lets through is judged by what is above.
            .where(or_(partition.worker.is_not(None), partition.state == PartitionState.OPEN))
            .group_by(run.id, run.queue, run.max_workers)
            .subquery()
        )
        ready = self._has_room_for(each.c.ready, each.c.held, each.c.max_workers)
        nothing = [null() for _ in range(10)]
        return (
            select(each.c.queue, *nothing, func.sum(ready).label("ready"), func.min(each.c.since).label("since"))
            .where(ready > 0)
            .group_by(each.c.queue)
        )

    def _has_room_for(
        self, ready: ColumnElement[int], held: ColumnElement[int], most: ColumnElement[int | None]
    ) -> ColumnElement[int]:
        """Count of the partitions of a run that are ready those that its `max_workers` allows to be worked now."""
        left = most - held
        return case((most.is_(None), ready), (left <= 0, 0), (ready > left, left), else_=ready)

    def _may_be_claimed(self) -> ColumnElement[bool]:
        """Tell a partition that a worker may claim, if nobody holds it."""
        run, partition = self.run.c, self.partition.c
        return and_(
            partition.state == PartitionState.OPEN,
            # MySQL's clock is that of the statement's start: what was handed on a moment later would be in no count.
            partition.due_at <= self.clock.after(literal(_SOON_SECONDS, Float)),
            run.state.in_(WORKABLE),
            run.requested.is_(None),
            self.is_not_held_off(),
        )

    def held_on(self, instance: str) -> Select[Any]:
        """Count the live leases of the processes of an instance."""
        worker = self.partition.c.worker
        return select(func.count()).where(worker.startswith(f"{instance}:", autoescape=True), self.is_live())

    def present(self) -> Select[Any]:
        """Read the workers that have said lately that they are there."""
        worker = self.worker.c
        return (
            select(self.worker)
            .where(worker.seen_at > self.ago(_PRESENT_SECONDS))
            .order_by(worker.instance, worker.name)
        )

    def insert_worker(
        self, name: str, *, instance: str, kind: str, queues: Sequence[str] | None, slots: int
    ) -> Executable:
        """Write down that a worker is there."""
        return insert(self.worker).values(
            name=name,
            instance=instance,
            kind=kind,
            queues=None if queues is None else json.dumps(list(queues)),
            slots=slots,
            started_at=self.clock.now(),
            seen_at=self.clock.now(),
        )

    def attend(self, name: str) -> Executable:
        """Write down that a worker is still there."""
        return update(self.worker).where(self.worker.c.name == name).values(seen_at=self.clock.now())

    def read_draining(self, name: str) -> Select[Any]:
        """Read since when a worker is to take nothing more."""
        return select(self.worker.c.draining_at).where(self.worker.c.name == name)

    def drain(self, instance: str) -> Executable:
        """Ask the workers of an instance to take nothing more."""
        return (
            update(self.worker)
            .where(self.worker.c.instance == instance, self.worker.c.seen_at > self.ago(_PRESENT_SECONDS))
            .values(draining_at=self.clock.now())
        )

    def drained_on(self, instance: str) -> Select[Any]:
        """Find the workers of an instance that are to take nothing more."""
        worker = self.worker.c
        return (
            select(worker.name)
            .where(worker.instance == instance, worker.draining_at.is_not(None))
            .order_by(worker.name)
        )

    def undrain(self, name: str) -> Executable:
        """Let a worker take work again."""
        return update(self.worker).where(self.worker.c.name == name).values(draining_at=None)

    def remove_worker(self, name: str) -> Executable:
        """Forget a worker."""
        return delete(self.worker).where(self.worker.c.name == name)

    def forgotten(self) -> Select[Any]:
        """Find workers that have said nothing for long."""
        return select(self.worker.c.name).where(self.worker.c.seen_at <= self.ago(_FORGOTTEN_SECONDS))

    def read_now(self) -> Select[Any]:
        """Read the clock."""
        return select(self.clock.after(literal(0.0, Float)))


class Fleet:
    """The workers of one database, and what they hold by live leases: one that was killed drops out with them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = FleetStatements(database.tables, database.clock)

    def busy(self, queues: Sequence[str] = ()) -> Busy:
        """Read who is busy with what, and what waits; *queues* are among the answer though they be empty."""
        with self._database.reading() as tx:
            rows = tx.execute(self._statements.held_and_waiting()).mappings().all()
            present = tx.execute(self._statements.present()).mappings().all()
            read_at = tx.execute(self._statements.read_now()).scalar_one()
        return summed_up(
            read_at,
            queues=queues,
            waiting=[Waiting(row["queue"], int(row["ready"]), row["since"]) for row in rows if row["worker"] is None],
            slices=sorted((_slice(row) for row in rows if row["worker"] is not None), key=_place),
            workers=[_worker(row) for row in present],
        )

    def held_on(self, instance: str) -> int:
        """Count the live leases of an instance's processes."""
        with self._database.reading() as tx:
            return int(tx.execute(self._statements.held_on(instance)).scalar_one())

    def attend(
        self, name: str, *, instance: str, kind: str, queues: Sequence[str] | None, slots: int, is_new: bool = False
    ) -> bool:
        """
        Say that a worker is there; give whether it is to take nothing more.

        The first time *is_new*: another of its name, in a container that began anew, may have left its row behind.
        """
        insert_it = self._statements.insert_worker(name, instance=instance, kind=kind, queues=queues, slots=slots)
        with self._database.transaction() as tx:
            if is_new:
                # One by one: a range of rows would lock its neighbours.
                # By name: two that begin at the same time must not lock each other's out.
                for dead in sorted({name, *tx.execute(self._statements.forgotten()).scalars()}):
                    tx.execute(self._statements.remove_worker(dead))
            elif tx.execute(self._statements.attend(name)).rowcount == 1:
                return tx.execute(self._statements.read_draining(name)).scalar_one_or_none() is not None
            tx.execute(insert_it)
            return False

    def leave(self, name: str) -> None:
        """Say that a worker is not there any more."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.remove_worker(name))

    def drain(self, instance: str) -> int:
        """Ask the workers of an instance to take nothing more, which they see when they attend; give how many."""
        with self._database.transaction() as tx:
            return tx.execute(self._statements.drain(instance)).rowcount

    def undrain_instance(self, instance: str) -> None:
        """Let the workers of an instance take work again, though somebody has asked for a drain from afar."""
        with self._database.transaction() as tx:
            for name in tx.execute(self._statements.drained_on(instance)).scalars().all():
                tx.execute(self._statements.undrain(name))

    def undrain(self, name: str) -> None:
        """Take note that a worker takes work again: its drain has ended, or was called off where it is."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.undrain(name))


def instance_of(worker: str) -> str:
    """Give the instance that a worker's name says."""
    return worker.rpartition(":")[0] or worker


def _slice(row: RowMapping) -> BusySlice:
    # A lease that was claimed before there were these columns knows nothing of itself.
    since = row["claimed_at"] or row["read_at"]
    checkpointed_at = row["checkpointed_at"] or since
    elapsed = (row["read_at"] - checkpointed_at).total_seconds()
    remaining = remaining_seconds(row["chunk_seconds"], elapsed)
    return BusySlice(
        run_id=RunId(row["run_id"]),
        job=row["job"],
        queue=row["queue"],
        partition=row["number"],
        worker=row["worker"],
        instance=instance_of(row["worker"]),
        since=since,
        checkpointed_at=checkpointed_at,
        remaining=remaining,
        is_interruptible=is_interruptible(
            is_protected=bool(row["is_protected"]), remaining=remaining, working=row["working_seconds"]
        ),
    )


def _place(slice_: BusySlice) -> tuple[str, str, str, int]:
    return (slice_.queue, slice_.worker, slice_.run_id, slice_.partition)


def _worker(row: RowMapping) -> PresentWorker:
    return PresentWorker(
        name=row["name"],
        instance=row["instance"],
        kind=row["kind"],
        queues=None if row["queues"] is None else tuple(json.loads(row["queues"])),
        slots=row["slots"],
        started_at=row["started_at"],
        seen_at=row["seen_at"],
        is_draining=row["draining_at"] is not None,
    )
