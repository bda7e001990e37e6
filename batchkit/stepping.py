"""The generator of a resumable: called from a cursor, worked step by step, closed where it cannot go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

from batchkit.errors import InvalidCursor
from batchkit.job import Definition
from batchkit.model import Lease
from batchkit.steps import Step, Steps
from batchkit.stopping import Stopping
from batchkit.store import ChunkTransaction, HeldConnection, KeptSession, OpenResults
from batchkit.values import ENDED, dumps, loads

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger("batchkit")

#: What the cursor begins with once the generator has returned; `dumps` writes no such thing.
_ENDED_PREFIX = f'{{"{ENDED}":'


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step has come to, as its checkpoint needs it."""

    cursor: str
    items: int
    carry: str
    committed_calls: Sequence[Callable[[], object]]
    #: whether the generator has returned
    is_last: bool


class Walk:
    """
    One slice's way through a resumable: a generator that is called anew from the last cursor wherever it was closed.

    Between two steps the generator stands at its yield, and the session that it writes through is kept for it.
    """

    def __init__(
        self,
        job: Definition,
        params: Mapping[str, object],
        *,
        held: HeldConnection,
        stop: Stopping,
        should_stop: Callable[[], bool],
        protecting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._job = job
        self._params = params
        self._held = held
        self._stop = stop
        self._should_stop = should_stop
        self._protecting = protecting
        self._results: OpenResults | None = None
        self._generator: GeneratorType[object, None, object] | None = None
        self._steps: Steps[Any] | None = None
        self._step = Step(number=0, attempt=0, cursor=None, transaction=None)
        self._yielded: object = None
        #: the session that goes from step to step
        self.kept = KeptSession()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def is_over(lease: Lease) -> bool:
        """Whether the generator has returned, or the run's limit leaves it no step."""
        has_returned = lease.cursor is not None and lease.cursor.startswith(_ENDED_PREFIX)
        return has_returned or (lease.limit is not None and lease.seq >= lease.limit)

    def advance(self, transaction: ChunkTransaction, lease: Lease, *, attempt: int) -> None:
        """
        Do the next step in *transaction*: from the yield where the generator stands, or from the lease's cursor.

        Raises:
            ResultCutOff: the function reads on in a result of the step before.
            Exception: what the function raises.
        """
        cursor = None if lease.cursor is None else loads(lease.cursor)
        self._step = Step(number=lease.seq + 1, attempt=attempt, cursor=cursor, transaction=transaction)
        if self._results is None:
            self._results = OpenResults(lease.run_id)
        self._results.watch(self._held.connection)
        if self._generator is None:
            self._generator = self._call(lease)
        try:
            self._yielded = next(self._generator)
        except StopIteration:
            self._generator = None
        except BaseException:
            self._generator = None
            raise
        finally:
            self._results.cut_off()

    def stepped(self, lease: Lease) -> Stepped:
        """
        Say what the step has come to.

        Raises:
            InvalidCursor: the generator has yielded None.
            NotSerializable: it has yielded something that cannot be stored, or `steps.carry` holds such a thing.
        """
        carry = {} if self._steps is None else self._steps.carry
        is_last = self._generator is None
        return Stepped(
            cursor=f"{_ENDED_PREFIX}{lease.cursor or 'null'}}}" if is_last else self._written_cursor(lease),
            items=1 if self._step.items is None else self._step.items,
            carry=dumps(carry, where="steps.carry") if carry else "{}",
            committed_calls=self._step.calls,
            is_last=is_last,
        )

    def close(self) -> None:
        """
        End the generator where it stands; the next step calls the function anew.

        Its session is closed first, and the connection with it: what a `finally` block wrote would be of no step.
        """
        generator, self._generator, self._steps = self._generator, None, None
        self._step = replace(self._step, transaction=None)
        try:
            self.kept.end()
            if generator is not None:
                # The function may have kept the session or the connection in a variable of its own.
                self._held.close()
        except Exception:
            _logger.warning("a session could not be closed", exc_info=True)
            self._held.discard()
        if generator is not None:
            self._end(generator)

    def _end(self, generator: GeneratorType[object, None, object]) -> None:
        try:
            generator.close()
        except Exception as error:
            if self._stop.is_interruption(error):
                raise
            # Nothing that a generator does when it is closed can change what is committed.
            _logger.warning("a generator raised when it was closed", extra={"job": self._job.name}, exc_info=True)

    def _call(self, lease: Lease) -> GeneratorType[object, None, object]:
        self._steps = Steps(
            lambda: self._step,
            run_id=lease.run_id,
            carry=cast("dict[str, object]", loads(lease.carry)),
            stopping=self._should_stop,
            protecting=self._protecting,
            is_dry_run=lease.is_dry_run,
        )
        return cast("GeneratorType[object, None, object]", self._job.function(self._steps, **self._params))

    def _written_cursor(self, lease: Lease) -> str:
        frame = None if self._generator is None else self._generator.gi_frame
        where = f"the cursor that {self._job.function.__qualname__} yielded"
        if frame is not None:
            where += f" ({frame.f_code.co_filename}:{frame.f_lineno})"
        if self._yielded is None:
            raise InvalidCursor(lease.run_id, where=where)
        return dumps(self._yielded, where=where)
