"""Structured logs: one JSON object a line on standard error. No tensors, no examples, no secrets."""

import json
import logging
import sys
from datetime import UTC, datetime

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


def log_to_stderr(level: int = logging.INFO) -> None:
    """Every logger of this process, from ``level`` on; libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("fedpeft", "fedpeft_server", "fedpeft_client"):
        logging.getLogger(name).setLevel(level)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
