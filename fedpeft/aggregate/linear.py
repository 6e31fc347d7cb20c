"""Rules that need nothing but sums: the damped mean, zero padding, means over owners.

A device that does not own a block counts as one that did not move it (``mean``), that holds zeros there
(``zero_padded``), or not at all (``owner_mean``). Only the first keeps the new state a convex combination of the
devices' states without a word about who owns what.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import factor_of
from fedpeft.aggregate.sums import RoundSums
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["mean", "owner_mean", "padded_values", "zero_padded"]

Vector = npt.NDArray[np.float64]


def mean(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """Every block moves by its sum over the weight of the whole cohort; exact for B A when one factor is frozen."""
    return _moved(state, round_sums, lambda _, old, total: old + total / round_sums.total_weight)


def zero_padded(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """FedIT (Zhang 2024) over mixed ranks: columns that a device lacks count as zeros.

    The weighted mean of padded factors is (W_owners old + sum) / W: columns that few own shrink in every round.
    """

    def step(block_id: BlockId, old: Vector, total: Vector) -> Vector:
        share = 1.0
        if factor_of(block_id):
            share = min(1.0, round_sums.owner_weights[block_id] / round_sums.total_weight)
        return share * old + total / round_sums.total_weight

    return _moved(state, round_sums, step)


def padded_values(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """HetLoRA (Cho 2024): as ``zero_padded``, by weights that are each device's |B A| (``device_side.product_norm``).

    Nobody is told the weights of a block's owners: LoRA's blocks are sums of weighted values, not changes
    (``device_side.own_values``), and what a device lacks adds zeros to both.
    """

    def step(block_id: BlockId, old: Vector, total: Vector) -> Vector:
        start = 0.0 if factor_of(block_id) else old
        return start + total / round_sums.total_weight

    return _moved(state, round_sums, step)


def owner_mean(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """RBLA (Tavallaie 2024): each block's mean over its owners; noisy where they are few."""

    def step(block_id: BlockId, old: Vector, total: Vector) -> Vector:
        weight = round_sums.owner_weights[block_id] if factor_of(block_id) else round_sums.total_weight
        return old + total / weight if weight > 0 else old

    return _moved(state, round_sums, step)


def _moved(
    state: AdapterState, round_sums: RoundSums, step: Callable[[BlockId, Vector, Vector], Vector]
) -> AdapterState:
    changed: dict[BlockId, npt.NDArray[np.float32]] = {}
    for block_id, total in round_sums.sums.items():
        changed[block_id] = step(block_id, state[block_id].astype(np.float64), total).astype(np.float32)
        if not np.isfinite(changed[block_id]).all():
            raise RunFailed(f"Expected finite values in {block_id} after the step; the state was not changed.")
    return state.replace(changed)
