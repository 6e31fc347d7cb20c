"""A virtual client's trainer that keeps its evaluations for the report: in a simulation the operator owns the data."""

from dataclasses import dataclass

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.ids import BlockId, SizeClass
from fedpeft.privacy import SampledRelease
from fedpeft.round.local import Effort, LocalResult, Trainer
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft_server.run.client_scores import ClientScores
from fedpeft_server.run.records import ClientScore

__all__ = ["ScoredTrainer"]


@dataclass(frozen=True, slots=True)
class ScoredTrainer:
    """See ``fedpeft.round.local.Trainer``: everything is the inner one's.

    Args:
        inner: trains and evaluates.
        scores: where its evaluations are kept.
    """

    inner: Trainer
    scores: ClientScores

    @property
    def methods(self) -> str:
        """See ``Trainer``."""
        return self.inner.methods

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self.inner.spec(plan)

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``."""
        return self.inner.first_state(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return self.inner.trains(plan)

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return self.inner.size_class(plan)

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return self.inner.evaluates(plan)

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``."""
        return self.inner.cost(plan)

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
