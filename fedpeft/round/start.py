"""Where a run begins: with the state that its plan makes on the device's own base, or one that the plan names.

A coordinator that could choose the first state could choose a crafted one. A device builds the adapter in any case, so
it knows what the state of round 1 is; another one is refused, unless the plan names its digest (an exported adapter to
go on with) and the site allows that one (``policy.allow_starts``).
"""

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.errors import SpecMismatch
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import state_digest

__all__ = ["NEAR", "expect_start", "named_start"]

NEAR = 2.0**-17
"""Of a block's largest value: what orthonormal rows may differ by between two LAPACKs once they are float32."""


def named_start(made: AdapterState, given: AdapterState) -> str:
    """What a plan says of a run that begins with ``given``: its digest, hex, if that is not what the plan makes.

    Args:
        made: what the plan makes on the base.
    """
    return "" if given.digests == made.digests else state_digest(given.digests).hex()


def expect_start(plan: LearningPlan, state: AdapterState, own: AdapterState) -> None:
    """Returns if round 1 begins as the plan says.

    Args:
        state: received.
        own: what this device makes of the plan.

    Raises:
        SpecMismatch: names the block that is another.
    """
    if plan.start:
        if state_digest(state.digests).hex() != plan.start:
            raise SpecMismatch(f"Expected the run to begin with state {plan.start[:16]} of its plan, found another.")
        return
    for block_id in own:
        if state.digests[block_id] == own.digests[block_id]:
            continue
        apart = float(np.abs(state[block_id].astype(np.float64) - own[block_id]).max(initial=0.0))
        limit = NEAR * float(np.abs(own[block_id]).max(initial=0.0))
        if not apart <= limit:
            raise SpecMismatch(
                f"Expected round 1 to begin with {block_id} as this device makes it (within {limit:g}), "
                f"found it {apart:g} away."
            )
