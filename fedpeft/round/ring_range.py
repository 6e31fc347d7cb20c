"""The clipping range and the ring of each block of a round, from the plan: one function for both sides.

A device that trains with AdamW moves no coordinate further than its learning rates add up to, whatever its examples
are: m / sqrt(v) is at most about one. So the plan says how long an honest delta can be, in every round and for late
joiners too, and neither a device nor the coordinator can make the range wider. Why not from the sums of the last round:
docs/adr/0030-ranges-from-rates.md. Pure.
"""

import math
from dataclasses import dataclass

from fedpeft.adapter import AdapterSpec
from fedpeft.aggregate.gradient_start import sketches
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head
from fedpeft.aggregate.rules import STEPS
from fedpeft.catalogue import BY_NAME
from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId
from fedpeft.ring import RingParams
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.rates import learning_rates

__all__ = ["CEILING", "RingRange", "largest_delta", "ring_range", "unbounded_range"]

CEILING = 4.0
"""Of a coordinate whose delta no learning rate bounds: SGD, class means, sketches of gradients, blocks that methods
measure or values that a rule turns on the device."""

MARGIN = 2.0
"""Times the sum of learning rates: for weight decay and for steps of AdamW after gradients that were small before."""

FLOOR = 2.0**-24

WIDE, NARROW = 32, 16
NARROW_LEVELS = 255
"""Either side of zero: with fewer a step of the ring is coarser than that of int8 gradients; at most 128 devices."""

TOLERANCE = 1e-9
"""Powers and cosines differ in the last bit between C libraries; ranges are powers of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRange:
    """How one block is encoded in one round.

    Args:
        max_abs: each coordinate of a device's input is clipped to this.
        bits: of its ring.
    """

    max_abs: float
    bits: int


def ring_range(
    plan: LearningPlan, adapter: AdapterSpec, block_id: BlockId, *, round_id: int, devices: int
) -> RingRange:
    """Of a block without client-level noise, whose range is its clip norm.

    Args:
        block_id: of the adapter; not in a bucket.
        devices: on the roster, of whom each may add to the sum.
    """
    terms = plan.secagg
    bound = largest_delta(plan, adapter, block_id, round_id=round_id)
    max_abs = bound if bound is not None and terms.max_abs == "auto" else unbounded_range(plan)
    if terms.bits != "auto":
        return RingRange(max_abs=max_abs, bits=terms.bits)
    known = bound is not None and max_abs <= bound
    fits = known and RingParams(bits=NARROW, addends=devices).levels >= NARROW_LEVELS
    return RingRange(max_abs=max_abs, bits=NARROW if fits else WIDE)


def unbounded_range(plan: LearningPlan) -> float:
    """What a coordinate is clipped to where no learning rate bounds it."""
    return CEILING if plan.secagg.max_abs == "auto" else plan.secagg.max_abs


def largest_delta(plan: LearningPlan, adapter: AdapterSpec, block_id: BlockId, *, round_id: int) -> float | None:
    """A power of two that no coordinate of an honest delta exceeds; None where learning rates bound none."""
    rule = plan.aggregate.rule
    method = adapter[block_id].method
    bounded = (
        plan.train.optimizer in {"adamw", "paged-adamw"}
        and STEPS[rule].before_sum is None
        and not RULES[rule].own_weight
        and not measures_head(adapter, plan.adapter, round_id)
        and not sketches(plan.adapter, round_id)
        and (method == HEAD_BLOCK or _is_stepped(plan, method))
    )
    if not bounded:
        return None
    factor = learning_rate_factor(plan.train, plan.rounds, round_id)
    rate = learning_rates(plan, adapter, [block_id])[block_id]
    longest = MARGIN * plan.train.local_steps * rate * factor
    return min(CEILING, max(FLOOR, 2.0 ** math.ceil(math.log2(longest) - TOLERANCE))) if longest > 0 else FLOOR


def _is_stepped(plan: LearningPlan, method: str) -> bool:
    """Whether the run has this method, and its values change by nothing but the optimizer's steps."""
    return method in BY_NAME and not BY_NAME[method].measures and getattr(plan.adapter, method) is not None
