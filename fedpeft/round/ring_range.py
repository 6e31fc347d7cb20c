"""The clipping range and the ring of each block of a round, from the plan: one function for both sides.

A device that trains with AdamW moves no coordinate further than its learning rates times ``adamw_reach`` add up to,
whatever its gradients are. So the plan says how long an honest delta can be, in every round and for late joiners too,
and neither a device nor the coordinator can make the range wider. Why not from the sums of the last round:
docs/adr/0030-ranges-from-rates.md. Pure.

Guarantees (tests/round/test_ring_range.py):
- steps of AdamW stay within the range, whatever the gradients: test_no_steps_of_adamw_lead_out_of_the_range;
- those that go furthest do, too, in a thousand steps: test_the_gradients_that_go_furthest_stay_in_range.
"""

import math
from dataclasses import dataclass
from functools import cache

from fedpeft.adapter import AdapterSpec
from fedpeft.aggregate.gradient_start import sketches
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head
from fedpeft.aggregate.rules import STEPS
from fedpeft.catalogue import BY_NAME
from fedpeft.config.derived import NARROW, WIDE, fits_narrow_ring
from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.rates import learning_rates
from fedpeft.round.rates.search import MOST, follows_search, local_steps

__all__ = ["CEILING", "RingRange", "adamw_reach", "largest_delta", "ring_range", "unbounded_range"]

CEILING = 4.0
"""Of a coordinate whose delta no learning rate bounds: SGD, class means, sketches of gradients, blocks that methods
measure or values that a rule turns on the device."""

MARGIN = 2.0
"""For weight decay, at most the rate again while decay times value is at most 1; and for values kept in bfloat16, which
move by no step or by up to twice what the step was (half a unit in the last place is rounded to a whole one)."""

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
"""AdamW's, of the means of gradients and of their squares, as ``fedpeft.tuning`` trains."""

FLOOR = 2.0**-24

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
    return RingRange(max_abs=max_abs, bits=NARROW if known and fits_narrow_ring(plan.aggregate, devices) else WIDE)


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
    trained_in = range(max(1, round_id - plan.rounds.max_staleness), round_id + 1)
    longest = max(_reach(plan, adapter, block_id, number) for number in trained_in)
    return min(CEILING, max(FLOOR, 2.0 ** math.ceil(math.log2(longest) - TOLERANCE))) if longest > 0 else FLOOR


def _reach(plan: LearningPlan, adapter: AdapterSpec, block_id: BlockId, round_id: int) -> float:
    """How far a round's training moves a coordinate."""
    factor = learning_rate_factor(plan.train, plan.rounds, round_id)
    largest = MOST if follows_search(plan, adapter, round_id) else 0.0  # whatever is measured: the range is the plan's
    rate = learning_rates(plan, adapter, [block_id], scale=largest)[block_id]
    return MARGIN * adamw_reach(local_steps(plan, adapter, round_id)) * rate * factor


@cache
def adamw_reach(steps: int) -> float:
    """How far AdamW can move a coordinate in so many steps from fresh moments, at a rate of 1, for any gradients.

    Step t goes by |m| / sqrt(v), both means over the gradients so far with weights a_k and b_k that are known. By
    Cauchy and Schwarz it is at most sqrt(sum_k a_k^2 / b_k): 1.0 for one step, 1.04 for the tenth, 2.2 for the
    hundredth, below 7.3 for any.

    Args:
        steps: of one round, at least 0; the optimizer begins anew in each.

    Example:
        >>> [round(adamw_reach(steps), 1) for steps in (1, 10, 100, 1000)]
        [1.0, 10.2, 160.5, 4228.5]
    """
    ratio = FIRST_DECAY**2 / SECOND_DECAY
    total = 0.0
    for t in range(1, steps + 1):
        first = (1 - FIRST_DECAY) / (1 - FIRST_DECAY**t)
        second = (1 - SECOND_DECAY**t) / (1 - SECOND_DECAY)
        total += first * math.sqrt(second * (1 - ratio**t) / (1 - ratio))
    return total


def _is_stepped(plan: LearningPlan, method: str) -> bool:
    """Whether the run has this method, and its values change by nothing but the optimizer's steps."""
    return method in BY_NAME and not BY_NAME[method].measures and getattr(plan.adapter, method) is not None
