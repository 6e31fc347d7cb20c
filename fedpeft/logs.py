"""Structured logs: one JSON object a line on standard error. No tensors, no examples, no secrets."""

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

__all__ = ["log_to_stderr"]


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
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
