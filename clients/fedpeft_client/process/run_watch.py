"""What passes between coordinator and worker, seen for the device's owner: who is asked, and what leaves.

Used by the agent alone, for every request. A plan is held against the owner's answers before a base is fetched for it;
what leaves is on the disk before it leaves.
"""

import logging

from fedpeft import secagg
from fedpeft.clock import Clock
from fedpeft.round.messages import Failure, Ready
from fedpeft.round.signed_request import SignedRequest
from fedpeft.round.transport import Stage
from fedpeft.wire import decode, kind_of
from fedpeft_client.run_question import question_of
from fedpeft_client.site import Site
from fedpeft_client.site_runs import SentRecord, SiteRuns

__all__ = ["RunWatch"]

_log = logging.getLogger(__name__)


class RunWatch:
    """Of one device.

    Args:
        runs: where questions, answers and counts are kept.
        site: whose rules say whether its owner is asked.
        clock: for the time of each.
    """

    def __init__(self, runs: SiteRuns, site: Site, clock: Clock) -> None:
        self._runs, self._site, self._clock = runs, site, clock

    def expect_approved(self, signed: SignedRequest) -> None:
        """Returns when the owner lets this device take part; a new plan is kept for the owner to see.

        Args:
            signed: what the coordinator has signed.

        Raises:
            PolicyRefused: the owner refused the run.
            ApprovalPending: the owner is asked, and has not answered.
            RosterMissing: the run is new here, and its terms came without the roster that the question speaks of.
        """
        asks = self._site.policy.approve == "ask"
        if signed.terms.participants or not self._runs.has_asked(signed.plan, needs_yes=asks):
            now = self._clock.utc().isoformat(timespec="seconds")
            if self._runs.ask(question_of(signed, source=self._site.data.source, at=now, needs_yes=asks)) and asks:
                _log.warning("run %s waits for your yes: see `fedpeft client runs pending`", signed.plan.run_id)
        self._runs.expect_approved(signed.plan, ask=asks)
        self._runs.begin(signed.terms.run_id, signed.terms.round_id)

    def is_off(self, stage: Stage) -> bool:
        """Whether the owner refused the run at work after its round began, and its input has not left yet.

        A run that is not known, because its file is gone or damaged, may be one that was refused: it is off too.

        Raises:
            IntegrityFailed: the owner's answer was damaged.
        """
        if stage is not Stage.MASK:
            return False
        run_id, _ = self._runs.begun()
        if not run_id:
            _log.warning("which run is at work is not known (HOME/runs/open): nothing leaves in this round")
        return not run_id or self._runs.is_refused(run_id)

    def leaving(self, stage: Stage, request: bytes, answer: bytes) -> None:
        """Count an answer that is about to leave; refusals, which say nothing of this device, are not counted."""
        if stage is Stage.PROFILE or kind_of(answer) in (Failure, secagg.Refusal):
            return
        run_id, round_id = self._runs.begun()
        statement = decode(answer, Ready).privacy if stage is Stage.FIT else None
        self._runs.add(
            SentRecord(
                run_id=run_id,
                last_round=round_id if stage is Stage.MASK else 0,
                bytes_up=len(answer),
                bytes_down=len(request),
                epsilon=None if statement is None else statement.epsilon,
                delta=None if statement is None else statement.delta,
            )
        )
