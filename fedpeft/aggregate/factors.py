"""LoRA's matrices in a flat global state: read them, put them back, factor a product anew. No torch.

A (r, d_in) and B (d_out, r) of one matrix lie in tiers, each tier in a block of its own (``lora.A.t4``). Products of
stacked factors are never formed: ``refactor`` costs O((d_in + d_out) k^2) for k stacked columns, never a dense SVD.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.catalogue.blocks import LORA
from fedpeft.ids import BlockId

__all__ = ["CARRIED", "Factors", "Matrix", "column_ends", "factor_of", "read_factors", "refactor", "write_factors"]

Matrix = npt.NDArray[np.float64]
CARRIED = "carried"
_PREFIX = "lora."


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One adapted matrix: dW = scale * (B A + carried B carried A).

    Args:
        down: A, (r, d_in).
        up: B, (d_out, r).
        carried_down, carried_up: the carried adapter's, (c, d_in) and (d_out, c); c may be 0.
    """

    down: Matrix
    up: Matrix
    carried_down: Matrix
    carried_up: Matrix


def factor_of(block_id: BlockId) -> str:
    """``A`` or ``B`` for a LoRA tier's block, empty for any other."""
    parts = block_id.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == LORA and parts[1] in {"A", "B"} else ""


def column_ends(spec: AdapterSpec) -> dict[BlockId, int]:
    """LoRA tier block -> the rank at which it ends."""
    ends = {}
    for block in spec.blocks:
        if factor_of(block.block_id):
            ends[block.block_id] = int(block.block_id.rpartition(".t")[2])
    return ends


def read_factors(
    spec: AdapterSpec, vectors: Mapping[BlockId, npt.NDArray[np.floating]], *, up_to: Mapping[str, int] | None = None
) -> dict[str, Factors]:
    """Every adapted matrix by its path, tiers put together in order, in float64.

    Args:
        spec: what the vectors are.
        vectors: a state, or deltas; a missing block counts as zeros.
        up_to: factor (``A``, ``B``) -> rank: columns beyond it are left out.
    """
    pieces: dict[tuple[str, str], list[Matrix]] = {}
    ends = column_ends(spec)
    blocks = [block for block in spec.blocks if block.block_id.startswith(_PREFIX)]
    for block in sorted(blocks, key=lambda one: ends.get(one.block_id, 0)):
        factor = factor_of(block.block_id)
        if factor and up_to is not None and ends[block.block_id] > up_to[factor]:
            continue
        vector = vectors.get(block.block_id)
        offset = 0
        for tensor in block.tensors:
            key = _place(tensor.name)
            values = (
                np.zeros(tensor.shape)
                if vector is None
                else vector[offset : offset + tensor.size].astype(np.float64).reshape(tensor.shape)
            )
            pieces.setdefault(key, []).append(values)
            offset += tensor.size
    paths = list(dict.fromkeys(path for path, _ in pieces))
    found = {}
    for path in paths:
        down = np.concatenate(pieces[path, "A"], axis=0)
        up = np.concatenate(pieces[path, "B"], axis=1)
        carried_down = pieces.get((path, f"{CARRIED}.A"), [np.zeros((0, down.shape[1]))])[0]
        carried_up = pieces.get((path, f"{CARRIED}.B"), [np.zeros((up.shape[0], 0))])[0]
        found[path] = Factors(down=down, up=up, carried_down=carried_down, carried_up=carried_up)
    return found


def write_factors(state: AdapterState, matrices: Mapping[str, Factors]) -> AdapterState:
    """``state`` with these factors cut back into its blocks."""
    changed = {}
    starts = _starts(state.spec)
    for block in state.spec.blocks:
        if not block.block_id.startswith(_PREFIX):
            continue
        parts = []
        for tensor in block.tensors:
            path, kind = _place(tensor.name)
            factors = matrices[path]
            if kind == f"{CARRIED}.A":
                part = factors.carried_down
            elif kind == f"{CARRIED}.B":
                part = factors.carried_up
            elif kind == "A":
                part = factors.down[starts[block.block_id] : starts[block.block_id] + tensor.shape[0]]
            else:
                part = factors.up[:, starts[block.block_id] : starts[block.block_id] + tensor.shape[1]]
            parts.append(part.reshape(-1))
        changed[block.block_id] = np.concatenate(parts).astype(np.float32)
    return state.replace(changed)


def refactor(
    up: Matrix, down: Matrix, rank: int, *, filler: Matrix | None = None
) -> tuple[Matrix, Matrix, npt.NDArray[np.float64]]:
    """The best product of ``rank`` columns for ``up @ down``, by thin QR of both and an SVD of the core.

    Args:
        up: (d_out, k).
        down: (k, d_in).
        rank: how many columns to keep.
        filler: (f, d_in) rows to take directions from where the product has fewer than ``rank``; those columns of B
            are zero. Without it such rows are zero as well.

    Returns:
        U Sigma (d_out, rank), V^T (rank, d_in) with orthonormal rows, and all singular values, descending.
    """
    q_up, r_up = np.linalg.qr(up)  # (d_out, m), (m, k)
    q_down, r_down = np.linalg.qr(down.T)  # (d_in, n), (n, k)
    u, sigma, vt = np.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = min(rank, int((sigma > 1e-7 * max(sigma[0], 1e-30)).sum())) if len(sigma) else 0
    columns = np.zeros((up.shape[0], rank))
    columns[:, :kept] = (q_up @ u[:, :kept]) * sigma[:kept]
    rows = np.zeros((rank, down.shape[1]))
    rows[:kept] = vt[:kept] @ q_down.T
    if filler is not None and kept < rank:
        # More filler than needed: a direction of it that the product already has leaves only rounding behind.
        fresh = filler - (filler @ rows[:kept].T) @ rows[:kept]
        order = np.argsort(-np.linalg.norm(fresh, axis=1), kind="stable")[: rank - kept]
        basis, triangle = np.linalg.qr(fresh[np.sort(order)].T)
        rows[kept:] = (basis * np.sign(np.diag(triangle))).T
    # The sign of a singular pair is free; fix it so that every LAPACK gives the same state.
    signs = np.sign(rows[np.arange(rank), np.abs(rows).argmax(axis=1)])
    signs[signs == 0] = 1.0
    return columns * signs, rows * signs[:, None], sigma


def _place(name: str) -> tuple[str, str]:
    """A tensor's matrix and kind: ``A``, ``B``, ``carried.A`` or ``carried.B``."""
    parts = name.split(".")
    return ".".join(parts[:-2]), f"{CARRIED}.{parts[-1]}" if parts[-2] == CARRIED else parts[-2]


def _starts(spec: AdapterSpec) -> dict[BlockId, int]:
    """LoRA tier block -> its first column."""
    ends = column_ends(spec)
    starts = {}
    for factor in ("A", "B"):
        before = 0
        for block_id, end in sorted(ends.items(), key=lambda item: item[1]):
            if factor_of(block_id) == factor:
                starts[block_id], before = before, end
    return starts
