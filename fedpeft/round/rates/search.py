"""``train.learning_rate = "measured"``: a run finds out how many times the table's rates suit it. Pure; no torch.

The first round that trains takes one step, so its sum is the mean of the devices' first steps. In the next one each
device measures the loss of that mean model at multiples of the step, on its own held-out examples: a few lanes of the
same secure sum, linear like the others. From then on every rate of the table is taken times the root of the multiple
with the least loss: the geometric mean of what the table and what the line say, whose errors are independent
(docs/adr/0035-measured-rates.md). Only the *mean* model's loss works: a device alone overfits sooner than the mean, and
its own loss picks two to six times too small (measured, same place).

Which round does what, the multiples and how many examples are a function of the plan. The scale that was found is in
each later round's signed work; a device holds it to the limits here and to what it was before.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate.head_start import HEAD_BLOCK, method_round
from fedpeft.aggregate.schedule import measured_blocks
from fedpeft.ids import BlockId
from fedpeft.privacy import LOSS_LIMIT
from fedpeft.ring import SumRange
from fedpeft.round.plan import LearningPlan

__all__ = [
    "LEAST",
    "MOST",
    "MULTIPLES",
    "PROBED",
    "RATE_PROBES",
    "RATE_PROBE_RANGES",
    "follows_search",
    "local_steps",
    "probe_states",
    "probe_vector",
    "probes_rate",
    "scale_of_losses",
    "why_not_measured",
]

RATE_PROBES = BlockId("rate-probes")
"""A lane for each of ``MULTIPLES``, of devices with held-out examples: weight x mean loss there."""

MULTIPLES: tuple[float, ...] = tuple(3.0**power for power in range(-2, 5))
RATE_PROBE_RANGES: tuple[SumRange, ...] = (SumRange(length=len(MULTIPLES), max_abs=LOSS_LIMIT),)
LEAST, MOST = math.sqrt(MULTIPLES[0]), math.sqrt(MULTIPLES[-1])
PROBED = 32
"""Held-out examples of a device at most: its loss is one of many in the mean."""

_FLAT = 1e-6
"""Losses that differ by less say nothing: the first round was burnt, or nothing could be evaluated."""
_RULES = frozenset({"nested", "fedit", "ffa", "rbla"})
"""Those whose next state is the mean of what devices changed, in every block of every round."""


def why_not_measured(plan: LearningPlan, adapter: AdapterSpec) -> str:
    """Why a run that asks for measured rates has the table's; empty: it measures them, or does not ask."""
    if plan.train.learning_rate != "measured":
        return ""
    rule = plan.aggregate
    methods = [method for method, _ in plan.adapter.declared()]
    reasons = (
        ("under privacy nothing is measured", plan.privacy is not None or plan.client_privacy is not None),
        ("the table's rates are AdamW's", plan.train.optimizer == "sgd"),
        (f"rule {rule.rule} makes other steps than the mean", rule.rule not in _RULES),
        ("rounds of A, folds, robust rules and buckets", bool(rule.a_round_every or rule.fold_every or rule.buckets)),
        ("a robust rule", rule.robust != "none"),
        ("a server optimizer", rule.server_optimizer != "none"),
        ("blocks that stay on the device", bool(rule.local)),
        ("the run begins with an adapter that was trained before", bool(plan.start)),
        ("a method decides between rounds", any(one.between_rounds or one.counts_rounds for one in methods)),
        ("fewer than three rounds train", method_round(adapter, plan.adapter, plan.rounds.count) < 3),
    )
    return next((reason for reason, holds in reasons if holds), "")


def local_steps(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> int:
    """Optimizer steps of a round that trains: one where the rate is to be measured along it."""
    return 1 if _training_round(plan, adapter, round_id) == 1 else plan.train.local_steps


def probes_rate(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> bool:
    """Whether devices measure the losses along the mean first step in this round; they train in it as well."""
    return _training_round(plan, adapter, round_id) == 2


def follows_search(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> bool:
    """Whether this round trains at rates that may have been measured."""
    return _training_round(plan, adapter, round_id) > 2


def probe_states(first: AdapterState, received: AdapterState) -> list[AdapterState]:
    """The mean model at each of ``MULTIPLES`` of the first step; the head as it was received.

    Args:
        first: what the plan begins with.
        received: after the first round that trained.
    """
    moved = {
        block.block_id: (first[block.block_id].astype(np.float64), received[block.block_id].astype(np.float64))
        for block in received.spec.blocks
        if block.trainable and block.block_id != HEAD_BLOCK
    }
    return [
        received.replace(
            {name: (start + multiple * (end - start)).astype(np.float32) for name, (start, end) in moved.items()}
        )
        for multiple in MULTIPLES
    ]


def probe_vector(weight: float, losses: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
    """One device's ``RATE_PROBES``; the largest losses where it could measure none.

    Args:
        weight: its public share, in (0, 1].
        losses: mean held-out loss at each of ``MULTIPLES``, in the unit of sums.
    """
    if losses is None or losses.shape != (len(MULTIPLES),):
        losses = np.full(len(MULTIPLES), LOSS_LIMIT)
    return (weight * np.clip(np.nan_to_num(losses, nan=LOSS_LIMIT), 0.0, LOSS_LIMIT)).astype(np.float32)


def scale_of_losses(losses: Sequence[float]) -> float:
    """By what the table's rates are multiplied, in [LEAST, MOST]; 1 where the losses say nothing.

    The root of the multiple with the least loss: of a parabola through the three points around it, over the logarithm.

    Args:
        losses: the cohort's, at each of ``MULTIPLES``.

    Example:
        >>> scale_of_losses([2.0, 1.9, 1.8, 1.9, 2.0, 3.0, 9.0]), scale_of_losses([1.0] * 7)
        (1.0, 1.0)
        >>> round(scale_of_losses([2.0, 1.9, 1.8, 1.7, 1.6, 1.7, 9.0]), 3)  # least near 9
        3.0
    """
    if max(losses) - min(losses) < _FLAT:
        return 1.0
    place = min(range(len(losses)), key=lambda index: losses[index])
    shift = 0.0
    if 0 < place < len(losses) - 1:
        below, here, above = losses[place - 1 : place + 2]
        curve = below - 2 * here + above
        shift = 0.5 * (below - above) / curve if curve > 0 else 0.0
    spacing = math.log(MULTIPLES[1] / MULTIPLES[0])
    scale = math.exp(0.5 * (math.log(MULTIPLES[place]) + shift * spacing))
    return min(MOST, max(LEAST, scale))


def _training_round(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> int:
    """Which of the rounds that train this is, from 1, in a run that measures its rate; 0: none, or it does not."""
    if plan.train.learning_rate != "measured" or round_id > plan.rounds.count or why_not_measured(plan, adapter):
        return 0
    if measured_blocks(adapter, plan.adapter, round_id):
        return 0
    return method_round(adapter, plan.adapter, round_id)
