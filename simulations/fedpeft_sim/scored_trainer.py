"""A virtual client's trainer that keeps its evaluations for the report: in a simulation the operator owns the data."""

from dataclasses import dataclass

from fedpeft.adapter import AdapterState
from fedpeft.round.local import Effort, ForwardingTrainer, LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft_server.run.client_scores import ClientScores
from fedpeft_server.run.records import ClientScore

__all__ = ["ScoredTrainer"]


@dataclass(frozen=True, slots=True)
class ScoredTrainer(ForwardingTrainer):
    """See ``fedpeft.round.local.Trainer``: everything is the inner one's.

    Args:
        inner: trains and evaluates.
        scores: where its evaluations are kept.
    """

    scores: ClientScores

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        result = self.inner.fit(plan, state, work, effort)
        if result.evaluated:
            self.scores.add(
                ClientScore(
                    round=work.round_id,
                    loss=result.evaluated_loss / result.evaluated,
                    accuracy=result.correct / result.evaluated if plan.task.record.accuracy else None,
                    examples=result.evaluated,
                )
            )
        return result
