"""The default rule: every block moves by its sum of weighted deltas over the weight of the whole cohort.

With one LoRA factor frozen, the map from parameters to dW is linear, so the new model's dW is exactly the
weighted mean of the devices' dW for any mix of ranks (DESIGN section 3; FFA-LoRA, Sun 2024, with nested
column tiers). The divisor is the total weight of the cohort, never that of a block's owners: the new
state stays a convex combination of the devices' states (an untrained block counts as unchanged), and
noise in rarely trained blocks is not multiplied.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["apply_mean"]


def apply_mean(
    state: AdapterState,
    sums: Mapping[BlockId, npt.NDArray[np.float64]],
    *,
    total_weight: float,
    server_learning_rate: float,
) -> AdapterState:
    """The next state.

    Args:
        state: the state that the devices started from.
        sums: for each block that was opened, the sum of weight x delta over its owners, (P,).
        total_weight: sum of the weights of all devices of the round, owners of a block or not; > 0.
        server_learning_rate: how far to go; 1 is the mean.

    Returns:
        The new state; blocks without a sum keep their values bit for bit.

    Raises:
        RunFailed: the total weight is not positive, or the result is not finite.
    """
    if not total_weight > 0:
        raise RunFailed(f"Expected a positive total weight, found {total_weight}; no device contributed an example.")
    changed: dict[BlockId, npt.NDArray[np.float32]] = {}
    for block_id, total in sums.items():
        step = total * (server_learning_rate / total_weight)  # (P,) float64
        changed[block_id] = (state[block_id].astype(np.float64) + step).astype(np.float32)
        if not np.isfinite(changed[block_id]).all():
            raise RunFailed(f"Expected finite values in {block_id} after the step; the state was not changed.")
    return state.replace(changed)
