"""Working a run in this process, with a live bar, until it ends or somebody stops it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from batchkit.app import BatchKit
from batchkit.cli.bar import Bar, Pace, Sight
from batchkit.cli.ending import FAILED, INTERRUPTED, exit_code, one_line
from batchkit.cli.showing import plain, speed, took
from batchkit.errors import DatabaseUnavailable
from batchkit.instance import worker_name
from batchkit.model import Lease, Partition
from batchkit.run import Run
from batchkit.slicing import Ending
from batchkit.states import RunState
from batchkit.stopping import Stop, stopped_by_signals

if TYPE_CHECKING:
    from typing_extensions import Self

_DRAW_EVERY_SECONDS = 0.2
_LOOK_EVERY_SECONDS = 1.0
_END_WITHIN_SECONDS = 2.0
#: How many items are done, failed and in doubt where no chunk was committed.
_NOWHERE = (0, 0, 0)


def run_with_bar(kit: BatchKit, run: Run, *, again: str) -> int:
    """
    Work *run* in this process until it ends, is paused or is interrupted; give the exit code that tells which.

    The first SIGINT or SIGTERM stops it after the chunk in flight, the second rolls that back. *again* is the command
    that lets it go on, for people.
    """
    try:
        return _worked(kit, run, again)
    except KeyboardInterrupt:
        # Outside the work: before the first chunk, or when all is over but for telling so.
        if run.has_ended:
            return exit_code(run)
        _interrupted(run, again)
        return INTERRUPTED
    except DatabaseUnavailable as error:
        _say(one_line(error))
        _interrupted(run, again)
        return INTERRUPTED


def _worked(kit: BatchKit, run: Run, again: str) -> int:
    began = time.monotonic()
    done_before = run.progress.done
    outcome = None
    with Stop() as stop:
        try:
            with stopped_by_signals(stop), Following(run, stop) as following:
                outcome = kit.work_run(run.id, stop=stop, watch=following.watch)
        except KeyboardInterrupt:
            _say("rolled the chunk in flight back")
    run.refresh()
    if outcome is not None and outcome.ending is Ending.DECLINED and outcome.error is not None:
        _say(f"run {run.id} was left to a worker whose code fits: {one_line(outcome.error)}")
        return FAILED
    if run.state in {RunState.QUEUED, RunState.RUNNING}:
        _interrupted(run, again)
    else:
        _tell_end(run, again, done=run.progress.done - done_before, seconds=time.monotonic() - began)
    return exit_code(run)


def _tell_end(run: Run, again: str, *, done: int, seconds: float) -> None:
    pace = f" in {took(seconds)}, {speed(done / seconds)}" if done and seconds else ""
    all_done = "" if done == run.progress.done else f" ({run.progress.done:,} in all)"
    undone = "; it was a dry run, so nothing of that was kept" if run.is_dry_run else ""
    print(f"run {run.id} of {run.job} {run.state}: {done:,} items done here{all_done}{pace}{undone}")  # noqa: T201
    if run.result is not None:
        print(f"result: {plain(run.result)}")  # noqa: T201
    if run.error is not None:
        _say(f"{one_line(Exception(run.error))}\n`batchkit show {run.id}` has the traceback. It goes on with:")
        _say(f"    {again}")
    elif run.state is RunState.PAUSED:
        _say(f"It goes on with:\n    {again}")


def _interrupted(run: Run, again: str) -> None:
    try:
        done = f"{run.refresh().progress.done:,} items are done and kept"
    except Exception:  # noqa: BLE001  the database may be away, which is why it was interrupted; no old number then
        done = "what was committed is kept"
    _say(f"run {run.id} is interrupted, {done}. It goes on with:\n    {again}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  it talks to a person


class Following:
    """
    Draws the bar of a run while this process works it, from a thread of its own.

    The worker only leaves numbers behind after each commit. When it has left none for a while, the thread looks into
    the database: this process may be waiting for another one's lease to end.
    """

    def __init__(self, run: Run, stop: Stop) -> None:
        self._run = run
        self._stop = stop
        self._lock = threading.Lock()
        self._positions: dict[int, tuple[int, int, int]] = {}
        self._total = run.progress.total
        self._chunk_size: int | None = run.progress.chunk_size
        self._pace = Pace()
        # Long ago: where the first chunk does not come at once, the reason is looked for at once.
        self._heard_at = self._looked_at = 0.0
        self._note = ""
        self._said_stop = False
        self._bar = Bar(run.job)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_over, name="batchkit-bar", daemon=True)

    def __enter__(self) -> Self:
        self._take(self._run.partitions())
        self._pace.add(self._passed())
        self._bar.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(_END_WITHIN_SECONDS)
        self._bar.__exit__()

    def watch(self, lease: Lease) -> None:
        """Note how far the worker is; called after each commit, so it must cost nothing."""
        with self._lock:
            before = sum(self._positions.get(lease.number, _NOWHERE))
            self._positions[lease.number] = (lease.done, lease.failed, lease.in_doubt)
            self._chunk_size = sum(self._positions[lease.number]) - before
            self._total = lease.total
            self._pace.add(self._passed())
            self._heard_at = time.monotonic()
            self._note = ""

    def _passed(self) -> int:
        return sum(map(sum, self._positions.values()))

    def _draw_until_over(self) -> None:
        while True:
            is_over = self._is_over.wait(_DRAW_EVERY_SECONDS)
            self._tell_stop()
            if not is_over and self._should_look:
                self._look()
            self._bar.show(self._sight())
            if is_over:
                return

    @property
    def _should_look(self) -> bool:
        # Whether a total is an estimate, the worker does not say.
        was_planned = self._total is not None and self._run.progress.total is None
        if len(self._positions) > 1:
            # Others may work the other partitions.
            return was_planned or time.monotonic() - self._looked_at > _LOOK_EVERY_SECONDS
        return was_planned or time.monotonic() - max(self._heard_at, self._looked_at) > _LOOK_EVERY_SECONDS

    def _sight(self) -> Sight:
        with self._lock:
            done, failed, in_doubt = map(sum, zip(_NOWHERE, *self._positions.values(), strict=True))
            return Sight(
                done=done,
                failed=failed,
                in_doubt=in_doubt,
                total=self._total,
                total_is_estimate=self._run.progress.total_is_estimate,
                rate=self._pace.rate,
                chunk_size=self._chunk_size,
                note=self._note,
            )

    def _tell_stop(self) -> None:
        if self._stop.requested and not self._said_stop:
            self._said_stop = True
            again = "press Ctrl-C again" if self._stop.reason == "SIGINT" else "send the signal again"
            self._bar.say(f"stopping after this chunk; {again} to roll it back")

    def _look(self) -> None:
        """See what the database says, since the worker says nothing."""
        try:
            self._run.refresh()
            partitions = self._run.partitions()
        except Exception:  # noqa: BLE001  the one who works meets the same error, and says it
            return
        finally:
            self._looked_at = time.monotonic()
        before = self._passed()
        with self._lock:
            self._take(partitions)
            self._total = self._run.progress.total
            self._chunk_size = self._run.progress.chunk_size or self._chunk_size
            self._note = ""
            others = [each for each in partitions if each.is_held and each.worker != worker_name()]
            is_alone = not any(each.is_held and each.worker == worker_name() for each in partitions)
            if others and self._passed() != before:
                self._pace.add(self._passed())
                self._note = _note_of(others, is_alone=is_alone)
            elif others and is_alone and others[0].lease_expires_at is not None:
                self._pace = Pace()
                left = (others[0].lease_expires_at - datetime.now(timezone.utc)).total_seconds()
                self._note = f"waiting for worker {others[0].worker}, whose lease ends in {max(0.0, left):.0f} s"

    def _take(self, partitions: Sequence[Partition]) -> None:
        for each in partitions:
            known = self._positions.get(each.number, _NOWHERE)
            self._positions[each.number] = max(known, (each.done, each.failed, each.in_doubt))


def _note_of(others: Sequence[Partition], *, is_alone: bool) -> str:
    """Say who works on a run besides this process, or instead of it."""
    if len(others) == 1:
        return f"worker {others[0].worker} is working on it{'' if is_alone else ', too'}"
    return f"{len(others)} other workers are working on it{'' if is_alone else ', too'}"
