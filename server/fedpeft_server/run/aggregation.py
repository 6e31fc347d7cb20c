"""What a round asks for and what becomes of its sums, by the run's [aggregate]; the engine between the two is the same.

The arithmetic is ``fedpeft.aggregate``. Invariant: everything that is carried from one round to the next is in
``ServerState`` and committed with the round, so a resumed run goes on bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import (
    Individual,
    ServerState,
)
from fedpeft.aggregate.factor_normalisation import idle_tiers
from fedpeft.config import RunConfig
from fedpeft.config.rules import RULES
from fedpeft.errors import RunFailed
from fedpeft.ids import ParticipantId
from fedpeft.round.linking import summed_blocks, survivors_in_buckets
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TASK_METRICS, TRAIN_LOSS, Measured, measured_in
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates.search import RATE_PROBES
from fedpeft.round.size_class import weight_share
from fedpeft.round.task import RoundOutcome, RoundTask
from fedpeft.round.transition import Opened, advanced
from fedpeft.round.work import planned_blocks

__all__ = ["Aggregation", "Individuals"]

Sum = npt.NDArray[np.float64]
Individuals = Callable[[], tuple[Individual, ...]]
"""Every device's contribution to the last sum: exists in a simulation without secure sum only."""


class Aggregation:
    """The run's rule, as the coordinator applies it.

    Args:
        config: the run.
        plan: what devices are asked to learn.
        individuals: for rules that need single devices' deltas.
        record: where dropped tiers are logged (``RunDirectory.record``).
    """

    def __init__(
        self,
        config: RunConfig,
        plan: LearningPlan,
        individuals: Individuals | None = None,
        *,
        record: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._config, self._plan, self._individuals, self._record = config, plan, individuals, record
        self._rule = config.aggregate
        if RULES[self._rule.rule].individual and individuals is None:
            raise RunFailed(
                f"Expected each device's own deltas for rule={self._rule.rule}: {RULES[self._rule.rule].individual}; "
                'they exist only in a simulation with secagg.mode = "off".'
            )

    def asked(self, task: RoundTask, state: AdapterState, server: ServerState) -> RoundTask:
        """The task with the blocks that this round trains, and SCAFFOLD's controls."""
        if not task.train:
            return task
        spec, idle = state.spec, idle_tiers(self._rule, state, round_id=task.round_id)
        if idle:
            saved = 4 * sum(spec[block_id].size for block_id in idle)
            self._record(
                "tiers.dropped",
                round_id=task.round_id,
                detail={"tiers": ", ".join(sorted(idle)), "bytes_up_saved_a_device": saved},
            )
        blocks = frozenset(planned_blocks(self._plan, spec, task.round_id)) - idle
        controls = server.control if self._config.train.scaffold else {}
        return replace(task, blocks=blocks, controls=controls)

    def advance(
        self,
        task: RoundTask,
        state: AdapterState,
        server: ServerState,
        outcome: RoundOutcome,
        summed: secagg.Summed,
        *,
        population: int,
        fixed_weight: float | None = None,
    ) -> tuple[AdapterState, ServerState]:
        """The next state and what to remember.

        Args:
            task: the attempt that ended in this sum.
            population: how many devices there are, asked or not.
            fixed_weight: to divide by instead of the weight of who is in the sum; under client-level privacy.

        Raises:
            RunFailed: the step cannot be taken or is not finite; nothing was changed.
        """
        opened = self._opened(task, outcome, summed, population, fixed_weight)
        return advanced(self._plan, state, server, opened)

    def measured(self, task: RoundTask, summed: secagg.Summed) -> Measured:
        """The cohort's means; their denominators are the public sizes of who is in them."""
        shares = self._shares(summed)
        lanes = (METRICS, TASK_METRICS, RATE_PROBES, TRAIN_LOSS)
        blocks = [block_id for block_id in lanes if block_id in summed.sums]
        return measured_in(
            {block_id: summed.sums[block_id].values for block_id in blocks},
            {block_id: sum(shares[place] for place in summed.sums[block_id].members) for block_id in blocks},
            evaluators=summed.sums[METRICS].owners if METRICS in summed.sums else 0,
            trained=task.train and self._plan.privacy is None,
            task=self._plan.task,
        )

    def _shares(self, summed: secagg.Summed) -> dict[ParticipantId, float]:
        """Each survivor's public weight: what it multiplied its deltas by."""
        if self._config.privacy.unit == "client":
            return dict.fromkeys(summed.survivors, 1.0)
        return {
            place: weight_share(self._plan.aggregate, declared) for place, declared in summed.weight_classes.items()
        }

    def _opened(
        self,
        task: RoundTask,
        outcome: RoundOutcome,
        summed: secagg.Summed,
        population: int,
        fixed_weight: float | None,
    ) -> Opened:
        blocks, shares = summed_blocks(summed), self._shares(summed)
        owner_weights = {block_id: sum(shares[place] for place in block.members) for block_id, block in blocks.items()}
        total = sum(shares.values()) if fixed_weight is None else fixed_weight
        if RULES[self._rule.rule].own_weight:
            if COHORT_WEIGHT not in summed.sums:
                raise RunFailed(f"Expected the sum of the devices' own weights, found it masked: {summed.skipped}.")
            total, owner_weights = float(summed.sums[COHORT_WEIGHT].values[0]), {}
        return Opened(
            round_id=task.round_id,
            sums={block_id: block.values for block_id, block in blocks.items()},
            owners={block_id: block.owners for block_id, block in blocks.items()},
            owner_weights=owner_weights,
            total_weight=total,
            survivors=survivors_in_buckets(self._plan, outcome.participants, task.round_id, summed.survivors),
            population=population,
            learning_rate_factor=task.learning_rate_factor,
            individuals=self._individuals() if self._individuals else (),
        )
