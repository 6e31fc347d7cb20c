"""What a device says about its troubles: as good as nothing. What it keeps about them: everything, on the device.

A coordinator chooses the state and the task, so whatever it hears that follows from the examples is an answer to a
question about them: "not finite", "no examples", "out of memory" each told one bit per round, under either privacy unit
(docs/adr/0012-silence-and-size-classes.md). So all refusals for one reason are the same bytes, and after a device has
begun to touch its examples it is ready whatever happens to them: what it cannot train is zero in the sum, below the
noise where there is noise. The cause goes to the device's own log, for whoever runs it.

Guarantees:
    - every failure that follows from the data gives the same bytes as none:
      tests/round/test_failures.py::test_every_data_dependent_failure_gives_the_same_bytes;
    - all refusals are the same bytes: tests/round/test_failures.py::test_all_refusals_are_the_same_bytes.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.errors import FedpeftError, NotYet, ResourceMissing, RosterMissing
from fedpeft.round.messages import Failure, FailureReason

__all__ = [
    "REFUSED",
    "UNABLE",
    "Tell",
    "Trouble",
    "cause_of",
    "is_for_lack_of_room",
    "log_trouble",
    "refusal_of",
    "trace_of",
]

REFUSED = Failure(reason=FailureReason.REFUSED)
UNABLE = Failure(reason=FailureReason.UNABLE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What went wrong on a device, for its own operator. May quote examples: it never leaves the device.

    Args:
        run_id: the run; empty when the request could not be read so far.
        round_id: the round; 0 likewise.
        cause: in words.
        trace: the traceback of an error that nobody foresaw; a simulation shows it, a deployment keeps it nowhere.
    """

    run_id: str
    round_id: int
    cause: str
    trace: str = ""


Tell = Callable[[Trouble], None]
"""Keeps a trouble where the device's operator finds it."""


def log_trouble(trouble: Trouble) -> None:
    """To this process's log."""
    _log.warning("round %d of %s: %s", trouble.round_id, trouble.run_id or "an unread request", trouble.cause)


def cause_of(error: Exception) -> str:
    """An exception in words; one of ours says what to do, of another its class is the most telling part."""
    if isinstance(error, MemoryError):
        return "Training ran out of memory."
    return str(error) if isinstance(error, FedpeftError) else f"{type(error).__name__}: {error}"


def trace_of(error: BaseException | None) -> str:
    """The traceback of an error that is not one of ours, as Python prints it; else empty."""
    if error is None or isinstance(error, FedpeftError | MemoryError):
        return ""
    return "".join(traceback.format_exception(error))


def refusal_of(error: Exception) -> Failure:
    """What a device says of whatever kept it from taking part: one reason, unless a later request may find it willing.

    That is said of a site's hours and of an owner who was not asked before, and of a roster that did not come with the
    terms; none of it follows from examples.
    """
    if isinstance(error, RosterMissing):
        return Failure(reason=FailureReason.MISSING_ROSTER)
    return Failure(reason=FailureReason.LATER) if isinstance(error, NotYet) else REFUSED


def is_for_lack_of_room(error: Exception) -> bool:
    """Whether less memory or disk may be enough: torch says that it is out of memory by a ``RuntimeError``."""
    return isinstance(error, MemoryError | ResourceMissing | RuntimeError | OSError)
