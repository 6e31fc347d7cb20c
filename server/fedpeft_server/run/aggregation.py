"""What a round asks for and what becomes of its sums, by the run's [aggregate]; the engine between the two is the same.

The arithmetic is ``fedpeft.aggregate``. Invariant: everything that is carried from one round to the next is in
``ServerState`` and committed with the round, so a resumed run goes on bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec
from fedpeft.aggregate import (
    Individual,
    RoundSums,
    ServerState,
    optimized,
    proposal,
    robust_proposal,
    settled,
)
from fedpeft.aggregate.factor_normalisation import idle_tiers
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head, without_means
from fedpeft.aggregate.linear import mean
from fedpeft.config import RunConfig
from fedpeft.config.rules import RULES
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TRAIN_LOSS, Measured, in_bucket, measured_in
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.round.size_class import weight_share
from fedpeft.round.task import RoundOutcome, RoundTask
from fedpeft.round.work import dealt_buckets, planned_blocks

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
        trained = task.trained(state.spec)
        measured = measures_head(state.spec, self._plan.adapter, task.round_id)
        if measured and not any(in_bucket(HEAD_BLOCK, b) in summed.sums for b in range(self._rule.buckets + 1)):
            return state, server  # too few owners: the head stays as it is
        if measured:
            state = without_means(state)
        if self._rule.robust == "none":
            sums = self._sums(summed, trained, fixed_weight)
            proposed = (mean if measured else partial(proposal, self._rule))(state, sums)
        else:
            sums = None
            proposed = robust_proposal(self._rule, state, self._updates(task, outcome, summed, trained))
        if measured:  # no step along a gradient: a server optimizer would remember it as one
            return proposed, server
        moved, server = optimized(self._rule, state, proposed, server)
        if self._config.train.scaffold and sums is not None:
            server = replace(server, control=self._controls(task, state.spec, server, summed, sums, population))
        settled_state = settled(self._rule, moved, round_id=task.round_id, seed=self._plan.seed)
        return settled_state, self._moments_after_normalisation(server, moved, settled_state)

    def measured(self, task: RoundTask, summed: secagg.Summed) -> Measured:
        """The cohort's means; their denominators are the public sizes of who is in them."""
        shares = self._shares(summed)
        blocks = [block_id for block_id in (METRICS, TRAIN_LOSS) if block_id in summed.sums]
        return measured_in(
            {block_id: summed.sums[block_id].values for block_id in blocks},
            {block_id: sum(shares[place] for place in summed.sums[block_id].members) for block_id in blocks},
            evaluators=summed.sums[METRICS].owners if METRICS in summed.sums else 0,
            trained=task.train and self._plan.privacy is None,
        )

    def _shares(self, summed: secagg.Summed) -> dict[ParticipantId, float]:
        """Each survivor's public weight: what it multiplied its deltas by."""
        if self._config.privacy.unit == "client":
            return dict.fromkeys(summed.survivors, 1.0)
        return {
            place: weight_share(self._plan.aggregate, declared) for place, declared in summed.weight_classes.items()
        }

    def _sums(self, summed: secagg.Summed, trained: Sequence[BlockSpec], fixed_weight: float | None) -> RoundSums:
        opened = [block.block_id for block in trained if block.block_id in summed.sums]
        sums = {block_id: summed.sums[block_id].values for block_id in opened}
        shares = self._shares(summed)
        owners = {block_id: sum(shares[place] for place in summed.sums[block_id].members) for block_id in opened}
        total = sum(shares.values()) if fixed_weight is None else fixed_weight
        if RULES[self._rule.rule].own_weight:
            if COHORT_WEIGHT not in summed.sums:
                raise RunFailed(f"Expected the sum of the devices' own weights, found it masked: {summed.skipped}.")
            total, owners = float(summed.sums[COHORT_WEIGHT].values[0]), {}
        individuals = self._individuals() if self._individuals else ()
        return RoundSums(sums=sums, total_weight=total, owner_weights=owners, individuals=individuals)

    def _updates(
        self, task: RoundTask, outcome: RoundOutcome, summed: secagg.Summed, trained: Sequence[BlockSpec]
    ) -> list[Mapping[BlockId, Sum]]:
        """Mean deltas to take a robust statistic of: one a bucket, or one a device where devices are seen."""
        buckets = dealt_buckets(self._plan, list(outcome.participants.values()), task.round_id)
        if not buckets:
            if self._individuals is None:
                raise RunFailed("Expected buckets or single devices' deltas for a robust rule, found neither.")
            return [one.deltas for one in self._individuals()]
        updates: list[Mapping[BlockId, Sum]] = []
        for bucket in sorted(set(buckets.values())):
            here = sum(buckets[outcome.participants[place]] == bucket for place in summed.survivors)
            update = {}
            for block in trained:
                part = summed.sums.get(in_bucket(block.block_id, bucket))
                if part is not None and here:
                    update[block.block_id] = part.values / here
            if update:
                updates.append(update)
        return updates

    def _controls(
        self,
        task: RoundTask,
        spec: AdapterSpec,
        server: ServerState,
        summed: secagg.Summed,
        sums: RoundSums,
        population: int,
    ) -> dict[BlockId, npt.NDArray[np.float32]]:
        """SCAFFOLD's c after the round, from the sum of deltas alone.

        Each owner's control moves by -c - delta / (K eta), so c moves by the mean of that over the population.
        """
        controls = dict(server.control)
        rates = learning_rates(self._plan, spec, sums.sums.keys())
        here = len(summed.survivors) / max(population, len(summed.survivors))
        for block_id, total in sums.sums.items():
            step = self._plan.train.local_steps * rates[block_id] * task.learning_rate_factor
            old = controls.get(block_id, np.zeros(total.shape, np.float32)).astype(np.float64)
            owners = summed.sums[block_id].owners / len(summed.survivors)
            moved = old - here * (owners * old + total / (sums.total_weight * step))
            controls[block_id] = moved.astype(np.float32)
        return controls

    @staticmethod
    def _moments_after_normalisation(server: ServerState, before: AdapterState, after: AdapterState) -> ServerState:
        """Moments of blocks whose factors were normalised mean nothing for the new ones: they restart at zero."""
        turned = {block_id for block_id in after if before[block_id] is not after[block_id]}

        def kept(moments: Mapping[BlockId, npt.NDArray[np.float32]]) -> dict[BlockId, npt.NDArray[np.float32]]:
            return {block_id: vector for block_id, vector in moments.items() if block_id not in turned}

        return ServerState(first=kept(server.first), second=kept(server.second), control=kept(server.control))
