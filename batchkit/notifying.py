"""Calling the hooks of a kit; whatever they do, no run is changed by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from batchkit.hooks import RunEvent, RunHook
from batchkit.store import Change, Store

_logger = logging.getLogger("batchkit")


class Notifier:
    """Tells each hook of each change, in their order; one that raises does not keep it from the others."""

    def __init__(self, store: Store, hooks: Sequence[RunHook]) -> None:
        self._store = store
        self._hooks = hooks
        if hooks:
            store.database.changes.listen(self.tell)

    def tell(self, change: Change, passes: Callable[[BaseException], bool]) -> None:
        """Call the hooks; an error that *passes* is none of theirs, but one that is to end the slice."""
        try:
            event = self._event(change)
        except Exception as error:
            if passes(error):
                raise
            extra = {"run_id": change.run_id, "event": change.happening.value}
            _logger.exception("hooks are not told of a change, since it could not be read", extra=extra)
            return
        for hook in self._hooks:
            self._call(hook, event, passes)

    def _call(self, hook: RunHook, event: RunEvent, passes: Callable[[BaseException], bool]) -> None:
        try:
            getattr(hook, event.happening.value)(event)
        except (Exception, SystemExit) as error:
            if passes(error):
                raise
            extra = {"run_id": event.run_id, "event": event.happening.value, "hook": type(hook).__name__}
            _logger.exception("a hook failed; its run is as it was", extra=extra)

    def _event(self, change: Change) -> RunEvent:
        made = self._store.records.transition(change.transition)
        run = self._store.records.load(change.run_id)
        return RunEvent(
            happening=change.happening,
            run_id=run.id,
            job=run.job,
            stored_params=run.params,
            before=made.before or made.after,
            after=made.after,
            reason=made.reason,
            worker=made.worker,
            at=made.at,
            error=run.error,
            progress=run.progress,
        )
