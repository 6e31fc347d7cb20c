"""LoRA's A from a sketch of the gradient, ``adapter.lora.start = "gradient"``: round 1 sums it and trains nothing.

With A = 0 and B = Omega, orthonormal columns drawn from the run's seed, the gradient of A is scale * Omega^T G, where G
is the gradient of the dense matrix: linear in G, so the secure sum of the devices' gradients is the sketch of the
cohort's (``fedpeft.tuning.gradient_sketch``). Its right singular vectors are the directions of the inputs that the loss
wants changed, most wanted first; they become A's rows. B stays zero, so the model is what it was. After LoRA-GA (Wang
2024) and EVA (Paischer 2024), which look at one machine's gradient or activations. Measured: docs/adr/0019. No torch.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate.factors import Factors, Matrix, factor_of, read_factors, refactor, write_factors
from fedpeft.config.adapter import Adapter
from fedpeft.entropy import generator
from fedpeft.ids import BlockId

__all__ = ["probing_state", "sketched_blocks", "sketches", "started_from"]


def sketches(adapter: Adapter, round_id: int) -> bool:
    """Whether this round sums the sketch and trains nothing: the first, where the run asks for it."""
    return adapter.sketches and round_id == 1


def sketched_blocks(spec: AdapterSpec) -> frozenset[BlockId]:
    """A's tiers: what the round sums, each of the devices whose rank reaches it."""
    return frozenset(block.block_id for block in spec.blocks if factor_of(block.block_id) == "A")


def probing_state(state: AdapterState, *, seed: int) -> AdapterState:
    """The state with A = 0 and B = Omega, at which devices take the gradient of A.

    Args:
        state: of round 1.
        seed: of the run: every device has the same Omega.
    """
    probes = {}
    for path, old in read_factors(state.spec, state).items():
        drawn = generator(seed, "gradient start", path).standard_normal(old.up.shape)
        probes[path] = _with(old, down=np.zeros_like(old.down), up=_columns(drawn))
    return write_factors(state, probes)


def started_from(state: AdapterState, sketch: Mapping[BlockId, npt.NDArray[np.floating]]) -> AdapterState:
    """The state with A's rows from a sketch: orthonormal, by descending singular value.

    Args:
        state: of round 1; B is zero.
        sketch: of A's tiers, each the mean over those who took it; a tier that is missing counts as zeros, and where
            the sketch has fewer directions than A has rows, the other rows are from A as it was drawn.
    """
    made, before = {}, read_factors(state.spec, state)
    for path, rows in read_factors(state.spec, sketch).items():
        old = before[path]
        _, down, _ = refactor(np.eye(len(rows.down)), rows.down, len(rows.down), filler=old.down)
        made[path] = _with(old, down=down, up=old.up)
    return write_factors(state, made)


def _with(old: Factors, *, down: Matrix, up: Matrix) -> Factors:
    return Factors(down=down, up=up, carried_down=old.carried_down, carried_up=old.carried_up)


def _columns(drawn: Matrix) -> Matrix:
    """Orthonormal columns, (d_out, r); of length one where there are more than d_out."""
    if drawn.shape[0] < drawn.shape[1]:
        drawn /= np.linalg.norm(drawn, axis=0)
        return drawn
    basis, triangle = np.linalg.qr(drawn)
    return basis * np.sign(np.diag(triangle))
