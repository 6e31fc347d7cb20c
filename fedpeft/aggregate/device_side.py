"""The part of a rule that runs on the device, between training and the secure sum. numpy only.

Whatever a device does to its own deltas keeps the sum linear: the coordinator still adds and divides.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate.factors import column_ends, factor_of, read_factors, write_factors
from fedpeft.config.model import Aggregate
from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId

__all__ = ["NORM_CAP", "forward_state", "keep_columns", "local_blocks", "own_values", "product_norm", "rotated"]

Vector = npt.NDArray[np.float32]
NORM_CAP = 64.0
"""HetLoRA's weight |B A| is divided by this and cut at one: a ratio of sums does not feel the constant, and no device
outweighs the rest without bound."""


def forward_state(aggregate: Aggregate, state: AdapterState, rank: int | None) -> AdapterState:
    """What a device of this rank computes with: the whole state, or under a truncating rule its own columns only.

    Args:
        rank: where its columns end; None: it has all. 0: none.
    """
    if rank is None or not RULES[aggregate.rule].truncated:
        return state
    ends = column_ends(state.spec)
    beyond = [block_id for block_id, end in ends.items() if factor_of(block_id) == "B" and end > rank]
    return state.replace({block_id: np.zeros_like(state[block_id]) for block_id in beyond})


def local_blocks(aggregate: Aggregate, spec: AdapterSpec) -> frozenset[BlockId]:
    """The trainable blocks that stay on their device: ``aggregate.local``, and what the rule leaves there."""
    names = {*aggregate.local, *RULES[aggregate.rule].local}
    return frozenset(
        block.block_id
        for block in spec.blocks
        if block.trainable and any(block.block_id == name or block.block_id.startswith(f"{name}.") for name in names)
    )


def product_norm(state: AdapterState, deltas: Mapping[BlockId, Vector]) -> float:
    """HetLoRA's weight of a device (Cho 2024, section 4.2), in (0, 1]: the Frobenius norm of its B A, all matrices."""
    ends = column_ends(state.spec)
    rank = max((ends[block_id] for block_id in deltas if factor_of(block_id) == "B"), default=0)
    if not rank:
        return 1.0 / NORM_CAP
    trained = dict(state) | {block_id: state[block_id] + delta for block_id, delta in deltas.items()}
    squares = 0.0
    for own in read_factors(state.spec, trained, up_to={"A": rank, "B": rank}).values():
        # |B A|^2 = trace((B^T B)(A A^T)): r x r, never the dense product.
        squares += float(((own.up.T @ own.up) * (own.down @ own.down.T)).sum())
    return float(np.clip(np.sqrt(squares) / NORM_CAP, 2.0**-16, 1.0))


def own_values(state: AdapterState, deltas: Mapping[BlockId, Vector]) -> dict[BlockId, Vector]:
    """Of LoRA's blocks the trained values, of the others the changes (``linear.padded_values``)."""
    return {block_id: state[block_id] + delta if factor_of(block_id) else delta for block_id, delta in deltas.items()}


def rotated(state: AdapterState, deltas: Mapping[BlockId, Vector]) -> dict[BlockId, Vector]:
    """FedRot-LoRA: the trained factors turned towards the broadcast ones: B R, R^T A with R the Procrustes solution.

    The product is unchanged; R minimises |A - R^T A_k|^2 + |B - B_k R|^2 over rotations, within the device's columns.
    """
    ends = column_ends(state.spec)
    rank = max((ends[block_id] for block_id in deltas if factor_of(block_id) == "B"), default=0)
    if not rank:
        return dict(deltas)
    trained = state.replace({block_id: state[block_id] + delta for block_id, delta in deltas.items()})
    old, new = read_factors(state.spec, state), read_factors(state.spec, trained)
    turned = {}
    for path, factors in new.items():
        before = old[path]
        cross = factors.up[:, :rank].T @ before.up[:, :rank] + factors.down[:rank] @ before.down[:rank].T  # (r, r)
        u, _, vt = np.linalg.svd(cross)
        rotation = u @ vt
        factors.up[:, :rank] = factors.up[:, :rank] @ rotation
        factors.down[:rank] = rotation.T @ factors.down[:rank]
        turned[path] = factors
    after = write_factors(trained, turned)
    return {
        block_id: after[block_id] - state[block_id] if factor_of(block_id) else delta
        for block_id, delta in deltas.items()
    }


def keep_columns(
    spec: AdapterSpec, state: AdapterState, deltas: Mapping[BlockId, Vector], budget: int
) -> dict[BlockId, Vector]:
    """LoRA-A2 (Koo 2025): of all rank-one parts of all matrices, the ``budget`` x matrices that moved dW most; the
    rest of the delta is zero.

    The score of a part is |delta of the trained column| x |frozen column|. Under a secure sum the zeros are masked
    like anything else, so which columns a device kept stays its own.
    """
    movement = read_factors(spec, deltas)
    frozen = read_factors(spec, state)
    scores = []
    for path, moved in movement.items():
        by_b = np.linalg.norm(moved.up, axis=0) * np.linalg.norm(frozen[path].down, axis=1)
        by_a = np.linalg.norm(moved.down, axis=1) * np.linalg.norm(frozen[path].up, axis=0)
        scores.append(np.maximum(by_a, by_b))
    table = np.stack(scores)  # (matrices, r)
    keep = np.zeros(table.size, bool)
    keep[np.argsort(-table, axis=None, kind="stable")[: budget * len(table)]] = True
    kept = keep.reshape(table.shape)
    for line, moved in enumerate(movement.values()):
        moved.up[:, ~kept[line]] = 0.0
        moved.down[~kept[line]] = 0.0
    zeros = AdapterState(spec, {block.block_id: np.zeros(block.size, np.float32) for block in spec.blocks})
    cut = write_factors(zeros, movement)
    return {block_id: cut[block_id] if factor_of(block_id) else delta for block_id, delta in deltas.items()}
