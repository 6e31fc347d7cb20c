"""What an operation answers, as HTTP: its value, or its error with the status that says whose fault it is."""

import json
import logging
from collections.abc import Mapping

from fedpeft.errors import (
    BudgetExhausted,
    ConfigInvalid,
    DataInvalid,
    FedpeftError,
    NotEnrolled,
    PolicyRefused,
    ResourceMissing,
)
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.asked import Asked, Download, NotThere
from fedpeft_server.admin.http import Answer
from fedpeft_server.admin.routes import Operation

__all__ = ["answer_of", "refused"]

_STATUS: tuple[tuple[type[FedpeftError], int], ...] = (
    (NotThere, 404),
    (NotEnrolled, 404),
    (ConfigInvalid, 422),
    (DataInvalid, 422),
    (PolicyRefused, 403),
    (BudgetExhausted, 409),
    (ResourceMissing, 409),
)
_log = logging.getLogger(__name__)


def answer_of(operation: Operation, site: Administered, asked: Asked) -> Answer:
    """Does it, and answers; every error of ours and of the disk is an answer."""
    try:
        value = operation.does(site, asked)
    except FedpeftError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
        return refused(status, str(error), exit_code=error.exit_code)
    except OSError as error:
        _log.warning("%s: %s", operation.name, error)
        return refused(503, f"Expected to read and write the coordinator's home, found {error.strerror}.", exit_code=8)
    if isinstance(value, Download):
        return Answer(kind="application/octet-stream", download=value)
    return Answer(status=operation.status, body=json.dumps(value, ensure_ascii=False, allow_nan=False).encode())


def refused(status: int, text: str, headers: Mapping[str, str] | None = None, *, exit_code: int = 0) -> Answer:
    """An error as an answer.

    Args:
        status: of HTTP.
        text: for a person.
        headers: further ones.
        exit_code: what the command line ends with; 0: as the status says.
    """
    content: dict[str, object] = {"error": text} | ({"exit_code": exit_code} if exit_code else {})
    return Answer(status=status, body=json.dumps(content).encode(), headers=dict(headers or {}))
