"""Structured logs: one JSON object a line on standard error. No tensors, no examples, no secrets."""

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

from fedpeft.clock import Clock, SystemClock

__all__ = ["FewOfAKind", "log_to_stderr"]

SPOKEN_OF_BY_DEVICES = ("flwr", "fedpeft.flower.handlers", "fedpeft.flower.state")
"""Loggers of which a device that does not do as it should decides how often they say something."""


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


class FewOfAKind(logging.Filter):
    """Lets a line of each kind through now and then, and with the next one says how many were not.

    Args:
        most: lines of a kind, and kinds, in each period.
        period_s: seconds.
        clock: monotonic.
    """

    def __init__(self, *, most: int = 10, period_s: float = 60.0, clock: Clock | None = None) -> None:
        super().__init__()
        self._most, self._period_s, self._clock = most, period_s, clock or SystemClock()
        self._begun_s, self._said, self._left_out = self._clock.monotonic_s(), dict[str, int](), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See ``logging.Filter``; a kind is a text before its values are filled in."""
        now_s, kind = self._clock.monotonic_s(), str(record.msg)[:200]
        if now_s - self._begun_s >= self._period_s:
            left_out, self._left_out = self._left_out, 0
            self._begun_s, self._said = now_s, {}
            if left_out:
                record.msg, record.args = f"{record.getMessage()} (and {left_out} lines like the last ones)", None
        if kind in self._said or len(self._said) < self._most:
            self._said[kind] = self._said.get(kind, 0) + 1
            if self._said[kind] <= self._most:
                return True
        self._left_out += 1
        return False


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What ended a thread, or the process."""
    if error is not None and not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("fedpeft").error("unforeseen: %s", kind.__name__, exc_info=(kind, error, trace))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Every logger of this process, from ``level`` on; libraries from warnings on. Call it before gRPC is loaded."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda given: _uncaught(given.exc_type, given.exc_value, given.exc_traceback)
    # gRPC's core writes lines of its own, one per stranger that fails a handshake. It reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    root.setLevel(logging.WARNING)
    for name in ("fedpeft", "fedpeft_server", "fedpeft_client"):
        logging.getLogger(name).setLevel(level)
    for name in SPOKEN_OF_BY_DEVICES:
        logging.getLogger(name).addFilter(FewOfAKind())
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
