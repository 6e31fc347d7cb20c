"""What a round hands to a rule: sums, and in a simulation without secure sum each device's own deltas."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["Individual", "RoundSums"]

Sum = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Individual:
    """One device's contribution, which only a simulation with ``secagg.mode = "off"`` ever sees.

    Args:
        weight: of its deltas.
        deltas: trained minus received values, (P,) a block that it owns; not multiplied by the weight.
        bucket: of bucketed sums, from 1; 0 without.
    """

    weight: float
    deltas: Mapping[BlockId, Sum]
    bucket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSums:
    """One round's sums.

    Args:
        sums: for each block that was opened, the sum of weight x delta over its owners, (P,).
        total_weight: sum of the weights of all devices of the round, owners of a block or not; > 0.
        owner_weights: the same over the owners of each block; only for rules that ask for it.
        individuals: every device's contribution, for rules that need it; empty under secure aggregation.
    """

    sums: Mapping[BlockId, Sum]
    total_weight: float
    owner_weights: Mapping[BlockId, float]
    individuals: tuple[Individual, ...] = ()

    def __post_init__(self) -> None:
        if not self.total_weight > 0:
            raise RunFailed(
                f"Expected a positive total weight, found {self.total_weight}; no device contributed an example."
            )
