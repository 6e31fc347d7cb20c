"""The attempts at a round, as the engine sees them: how long to wait for the next, and when there is no use in one."""

from collections.abc import Mapping

from fedpeft.errors import RunFailed
from fedpeft.ids import RoundId
from fedpeft.round.events import Event, EventKind
from fedpeft.round.messages import FailureReason
from fedpeft.round.transport import Stage

__all__ = ["BACK_OFF_S", "LATER_S", "Attempts"]

BACK_OFF_S = (2.0, 10.0, 30.0)
"""Before the second, third and every later attempt at one round."""
LATER_S = 600.0
"""Before another attempt at a round that lacks devices whose sites take part at other hours."""
_FOR_GOOD: Mapping[str, str] = {
    FailureReason.REFUSED.value: "the plan, the site's rules or its budgets do not allow the round",
}
"""Reasons that another attempt at the same round cannot change, and what they mean."""


class Attempts:
    """Of one run; fed with its events in their order."""

    def __init__(self) -> None:
        self._round: RoundId | None = None
        self._tries = 0
        self._asked: set[str] = set()
        self._failed: dict[str, str] = {}

    def seen(self, event: Event) -> Event:
        """The event, noted."""
        if event.kind is EventKind.ROUND_STARTED:
            self._asked, self._failed = set(), {}
        elif event.kind is EventKind.ASKED and event.stage is Stage.FIT:
            self._asked.add(event.device)
        elif event.kind is EventKind.FAILED:
            self._failed[event.device] = event.detail
        return event

    def before(self, round_id: RoundId) -> float:
        """How many seconds to wait before the next attempt.

        Raises:
            RunFailed: every device gave the same reason, and it is one that stays.
        """
        if round_id != self._round:
            self._round, self._tries = round_id, 0
            return 0.0
        reasons = set(self._failed.values())
        if self._asked and self._asked <= self._failed.keys() and len(reasons) == 1:
            (reason,) = reasons
            if reason in _FOR_GOOD:
                raise RunFailed(
                    f"Expected devices that take part in round {round_id}, found that all {len(self._asked)} answer "
                    f"{reason!r}: {_FOR_GOOD[reason]}. The cause is on each device (`fedpeft client status`); "
                    "change the run or the sites' rules, then submit or resume it."
                )
        if reasons == {FailureReason.LATER.value}:
            return LATER_S
        self._tries += 1
        return BACK_OFF_S[min(self._tries, len(BACK_OFF_S)) - 1]
