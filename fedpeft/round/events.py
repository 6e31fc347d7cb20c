"""What a round reports to its observers: one event per transition, for the live table, the log and the records."""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.ids import RoundId
from fedpeft.round.transport import Stage

__all__ = ["Event", "EventKind", "Observer"]


class EventKind(enum.Enum):
    """Transitions of a round. A device's failure is an event with a reason, not an exception."""

    ROUND_STARTED = "round-started"
    ASKED = "asked"
    ANSWERED = "answered"
    LACKED = "lacked"  # it was to have state, history or roster and does not: it is sent them, and asked again
    FAILED = "failed"
    STAGE_CLOSED = "stage-closed"
    SUMMED = "summed"
    ABORTED = "aborted"
    BURNT = "burnt"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition.

    Args:
        kind: which.
        round_id: of which round.
        stage: in which exchange, if in one.
        device: which device, if one.
        detail: for a person: a reason, what is waited for, and until when.
        seconds: from asking the device to its answer.
        bytes_up, bytes_down: payload bytes of this answer and of its request.
    """

    kind: EventKind
    round_id: RoundId
    stage: Stage | None = None
    device: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


Observer = Callable[[Event], None]
