"""SCAFFOLD on the device (Karimireddy 2020, option II). Controls are gradients: (P,) a block.

A step goes along g - c_k + c, with c the coordinator's control and c_k the device's own. Afterwards
c_k <- c_k - c - delta / (K eta). The coordinator's c follows from the sum of deltas alone, so nothing more is
uploaded; c comes with the fit request.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.round.work import Work

__all__ = ["correction", "next_controls"]

Vector = npt.NDArray[np.float32]
_OWN = "control/"


def correction(work: Work, kept: Mapping[BlockId, Vector], blocks: Mapping[BlockId, float]) -> dict[BlockId, Vector]:
    """What is added to each block's gradient: c - c_k."""
    found = {}
    for block_id in blocks:
        c, own = work.controls.get(block_id), kept.get(BlockId(_OWN + block_id))
        if c is not None or own is not None:
            found[block_id] = np.asarray((0.0 if c is None else c) - (0.0 if own is None else own), np.float32)
    return found


def next_controls(
    corrected: Mapping[BlockId, Vector],
    deltas: Mapping[BlockId, Vector],
    rates: Mapping[BlockId, float],
    *,
    steps: int,
) -> dict[BlockId, Vector]:
    """The device's own controls after a round, under the names that ``RoundMemory`` keeps them by."""
    return {
        BlockId(_OWN + block_id): np.asarray(
            -corrected.get(block_id, np.zeros(1, np.float32)) - deltas[block_id] / np.float32(steps * rate), np.float32
        )
        for block_id, rate in rates.items()
        if rate > 0
    }
