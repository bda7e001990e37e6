"""Log lines on stderr: one line each, with the data that came with them."""

from __future__ import annotations

import logging
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_to_stderr(*, verbose: int, is_service: bool, with_tracebacks: bool) -> None:
    """
    Show what batchkit logs, from INFO on for services and from WARNING on for the rest, and more when *verbose*.

    An app that has set up logging of its own keeps it.
    """
    quiet = logging.INFO if is_service else logging.WARNING
    logging.getLogger("batchkit").setLevel(max(logging.DEBUG, quiet - 10 * verbose))
    root = logging.getLogger()
    if any(not isinstance(each, _ToStderr) for each in root.handlers):
        return
    for each in list(root.handlers):
        root.removeHandler(each)
    handler = _ToStderr()
    handler.setFormatter(_Compact(with_tracebacks=with_tracebacks or verbose > 0))
    root.addHandler(handler)


class _ToStderr(logging.Handler):
    """Writes to what is stderr at the moment: a live bar puts itself in its place, to move down in time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  the way of the logging module: a log line never breaks the work
            self.handleError(record)


class _Compact(logging.Formatter):
    def __init__(self, *, with_tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._with_tracebacks = with_tracebacks

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging calls it so
        line = super().formatMessage(record)
        data = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None and not self._with_tracebacks:
            error = record.exc_info[1]
            data["error"] = f"{type(error).__name__}: {error}"
        return " ".join([line, *(f"{name}={_shown(value)}" for name, value in data.items())])

    def formatException(self, ei: object) -> str:  # noqa: N802  logging calls it so
        return super().formatException(ei) if self._with_tracebacks else ""  # type: ignore[arg-type]

    def format(self, record: logging.LogRecord) -> str:
        # Without its traceback the text ends with an empty line. Another handler's cached traceback must not be used.
        record.exc_text = None
        text = super().format(record).rstrip("\n")
        record.exc_text = None
        return text


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return repr(text) if " " in text or not text else text
