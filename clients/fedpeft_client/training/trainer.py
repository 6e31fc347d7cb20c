"""The device's trainer: its examples, the methods that it can afford, and torch.

Implements ``fedpeft.round.local.Trainer``. Examples are encoded once per task and never leave this object;
what leaves is deltas and sums, for the secure aggregation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate.device_side import forward_state, local_blocks
from fedpeft.aggregate.gradient_start import sketches
from fedpeft.aggregate.head_start import measures_head, without_means
from fedpeft.aggregate.rules import STEPS
from fedpeft.catalogue import TIERED
from fedpeft.config.performance import MemoryUse
from fedpeft.config.rules import RULES
from fedpeft.entropy import derive_seed
from fedpeft.errors import DataInvalid
from fedpeft.ids import BlockId, SizeClass
from fedpeft.methods import blocks_for, due_blocks, round_of
from fedpeft.privacy import NoiseStream, SampledRelease
from fedpeft.round.example_privacy import noise_of, round_cost
from fedpeft.round.local import DeviceStore, Effort, LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.round.rates.search import local_steps, probes_rate
from fedpeft.round.ring_range import unbounded_range
from fedpeft.round.size_class import size_class
from fedpeft.round.work import Work
from fedpeft.tuning import Evaluation, LocalPlan, train
from fedpeft.tuning.class_means import measure_class_means
from fedpeft.tuning.gradient_sketch import sketch_gradient
from fedpeft.tuning.label_calibration import label_offset
from fedpeft_client.training.choice import Capacity
from fedpeft_client.training.device_stores import MemoryStore
from fedpeft_client.training.examples import Examples, Prepared, batch_seed
from fedpeft_client.training.local_plan import local_plan
from fedpeft_client.training.measuring import measured_state
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_client.training.private_steps import take_private_steps
from fedpeft_client.training.rate_probe import losses_along
from fedpeft_client.training.round_memory import RoundMemory
from fedpeft_client.training.scaffold import correction, next_controls
from fedpeft_client.training.script import Script

if TYPE_CHECKING:
    from fedpeft.methods import UnionAdapter

__all__ = ["TorchTrainer"]

Vector = npt.NDArray[np.float32]

PLAIN = MemoryUse()
NOTHING_EVALUATED = Evaluation(loss_sum=0.0, correct=0, examples=0)


class TorchTrainer:
    """One device's trainer.

    Args:
        device: its name; with the run's seed it determines the order of its batches.
        capacity: what it trains.
        pool: the base model, possibly shared with other virtual clients.
        examples: its own.
        memory_use: how it saves memory.
        memory: where it keeps local blocks and controls between rounds; None: in RAM.
        declared: its size class; None: that of its training examples.
        script: takes the steps of rounds that train; None: fedpeft's own loop does.
    """

    def __init__(
        self,
        *,
        device: str,
        capacity: Capacity,
        pool: ModelPool,
        examples: Examples,
        memory_use: MemoryUse = PLAIN,
        memory: DeviceStore | None = None,
        declared: SizeClass | None = None,
        script: Script | None = None,
    ) -> None:
        self._device, self._capacity, self._pool, self._examples = device, capacity, pool, examples
        self._memory_use, self._declared, self._script = memory_use, declared, script
        self._memory = RoundMemory(memory or MemoryStore())

    @property
    def methods(self) -> str:
        """What it trains, for reports."""
        return str(self._capacity)

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self._pool.spec(plan)

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``."""
        return self._pool.initial_state(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        capacity = self._capacity
        spec = self._pool.spec(plan)
        # Of every column a device keeps as many as its rank pays for, after training.
        rank = None if RULES[plan.aggregate.rule].every_column else capacity.rank
        return frozenset(blocks_for(spec, methods=capacity.methods, rank=rank, head=capacity.head))

    def change(self, capacity: Capacity) -> None:
        """From the next round on the device trains this: its battery or its memory says so."""
        self._capacity = capacity

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return size_class(self._examples.units(plan)) if self._declared is None else self._declared

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return self._examples.evaluates

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``."""
        if plan.privacy is None:
            return None
        return round_cost(plan, declared=self.size_class(plan), parameters=self._parameters(plan))

    def _parameters(self, plan: LearningPlan) -> int:
        spec = self._pool.spec(plan)
        return sum(spec[block_id].size for block_id in self.trains(plan))

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``: evaluate the received state, then train from it."""
        examples = self._examples.for_effort(plan, effort)
        kept = self._memory.begin(work)
        local = local_blocks(plan.aggregate, state.spec) & self.trains(plan)
        state = state.replace({block_id: kept[block_id] for block_id in local if block_id in kept})
        learnt, probes = _Trained(deltas={}), None
        with self._pool.lend(plan) as union:
            union.load(state)
            measured, unmeasured = NOTHING_EVALUATED, tuple[str, ...]()
            # Under example-level privacy a loss would be a release.
            if plan.privacy is None and len(examples.held_out):
                measured, unmeasured = measured_state(union, plan, work, examples, self._pool)
            if probes_rate(plan, state.spec, work.round_id) and len(examples.held_out):
                probes = losses_along(union, self._pool.initial_state(plan), state, examples)
            if work.train:
                careful = effort is not Effort.FULL
                learnt = self._learn(plan, union, state, work, examples, careful=careful, kept=kept, local=local)
        return LocalResult(
            deltas=MappingProxyType(learnt.deltas),
            trained_loss=learnt.loss_sum,
            trained=learnt.examples,
            evaluated_loss=measured.loss_sum,
            correct=measured.correct,
            evaluated=measured.examples,
            lanes=measured.lane_means,
            probes=probes,
            troubles=(*examples.troubles, *unmeasured),
            noise=learnt.noise,
        )

    def _learn(
        self,
        plan: LearningPlan,
        union: "UnionAdapter",
        state: AdapterState,
        work: Work,
        examples: Prepared,
        *,
        careful: bool,
        kept: Mapping[BlockId, Vector],
        local: frozenset[BlockId],
    ) -> "_Trained":
        """Train what is due of the device's own, and keep what stays here.

        Args:
            state: the global state, with the device's own values of local blocks.
            careful: whether one example at a time passes through the model.
            kept: what earlier rounds left on this device.
            local: the device's blocks that stay here.
        """
        round_id = round_of(work.first_step, plan.train.local_steps)
        measuring = measures_head(union.spec, plan.adapter, round_id)
        owns = self.trains(plan) & due_blocks(union.spec, plan.adapter, round_id) & (local | set(work.blocks))
        if not owns:  # nothing of what this round asks for is this device's: it adds to the metrics alone
            return _Trained(deltas={})
        rates = learning_rates(plan, union.spec, owns, scale=work.learning_rate_scale)
        steps = local_plan(
            plan.train.model_copy(update={"local_steps": local_steps(plan, union.spec, round_id)}),
            rates,
            work.learning_rate_factor,
            micro_batch=1 if careful else self._memory_use.micro_batch,
            checkpointing=self._memory_use.checkpointing or self._capacity.checkpointing,
        )
        if sketches(plan.adapter, round_id):
            return self._sketch(plan, union, state, steps, examples)
        scaffold = plan.train.scaffold and not measuring
        corrected = correction(work, kept, rates) if scaffold else {}
        start = without_means(state) if measuring else state
        union.load(forward_state(plan.aggregate, start, self._lora_rank()))
        before = union.extract(sorted(rates))  # as rounded here: the rounding is no part of a change
        loss_sum, seen, noise = 0.0, 0, None
        if measuring:
            self._measure_head(plan, union, examples)
        elif plan.privacy is not None:  # nothing but the steps themselves is private: the device has refused the rest
            declared = self.size_class(plan)
            found = noise_of(plan.privacy, plan.train.batch_size, declared, self._parameters(plan))
            noise = take_private_steps(
                union, steps, examples, plan.privacy, found, declared=declared, stream=work.noise
            )
        else:
            loss_sum, seen = self._take_steps(
                plan, union, steps, examples, first_step=work.first_step, corrected=corrected
            )
        after = union.extract(sorted(rates))
        deltas = {block_id: after[block_id] - before[block_id] for block_id in after}
        left = {block_id: after[block_id] for block_id in local & after.keys()}
        if scaffold:
            left |= next_controls(corrected, deltas, steps.learning_rates, steps=steps.steps)
        if left:
            self._memory.keep(work, {**kept, **left})
        keep = STEPS[plan.aggregate.rule].keep
        if keep is not None and self._capacity.rank is not None:
            deltas = keep(state.spec, state, deltas, self._capacity.rank)
        return _Trained(deltas=deltas, loss_sum=loss_sum, examples=seen, noise=noise)

    def _sketch(
        self, plan: LearningPlan, union: "UnionAdapter", state: AdapterState, steps: LocalPlan, examples: Prepared
    ) -> "_Trained":
        deltas, loss_sum, seen = sketch_gradient(
            union,
            state,
            examples.train,
            steps,
            run_seed=plan.seed,
            seed=batch_seed(plan.seed, self._device),
            max_abs=unbounded_range(plan),
            cache=examples.train_cache,
        )
        return _Trained(deltas=deltas, loss_sum=loss_sum, examples=seen)

    def _measure_head(self, plan: LearningPlan, union: "UnionAdapter", examples: Prepared) -> None:
        measure_class_means(
            union,
            examples.train,
            steps=plan.train.local_steps,
            batch_size=plan.train.batch_size,
            seed=batch_seed(plan.seed, self._device),
            cache=examples.train_cache,
        )

    def _take_steps(
        self,
        plan: LearningPlan,
        union: "UnionAdapter",
        steps: LocalPlan,
        examples: Prepared,
        *,
        first_step: int,
        corrected: Mapping[BlockId, Vector],
    ) -> tuple[float, int]:
        """Loss summed over the examples seen, and their number."""
        if self._script is not None:
            if not len(examples.train):  # the script has them all the same, and would train on what is not permitted
                raise DataInvalid("Expected at least one example that may be trained on, found none.")
            order = derive_seed(batch_seed(plan.seed, self._device), "script", first_step)
            return self._script.take_steps(union, steps, seed=order)
        outcome = train(
            union,
            examples.train,
            steps,
            seed=batch_seed(plan.seed, self._device),
            first_step=first_step,
            cache=examples.train_cache,
            logit_offset=label_offset(examples.train, len(plan.task.labels), strength=plan.train.label_calibration),
            correction=corrected,
        )
        return outcome.mean_loss * outcome.examples_seen, outcome.examples_seen

    def _lora_rank(self) -> int | None:
        """Where the device's own columns end: None is all, 0 is none."""
        return self._capacity.rank if TIERED & {*self._capacity.methods} else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What training left: the change of each block, the loss summed over the examples seen, and the noise's stream."""

    deltas: Mapping[BlockId, Vector]
    loss_sum: float = 0.0
    examples: int = 0
    noise: NoiseStream | None = None
