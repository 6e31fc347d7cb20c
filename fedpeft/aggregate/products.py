"""Rules that need each device's own product B_k A_k: FlexLoRA, FLoRA, FedEx-LoRA, LoRA-FAIR. Simulation only.

Target: dW* = sum_k p_k B_k A_k over the devices' own columns. It is kept as stacked
factors [p_1 B_1, p_2 B_2, ...] and [A_1; A_2; ...]; no dense product is formed. Blocks other than LoRA's take the
damped mean.
"""

from collections.abc import Callable, Mapping

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import Factors, Matrix, column_ends, factor_of, read_factors, refactor, write_factors
from fedpeft.aggregate.linear import mean, zero_padded
from fedpeft.aggregate.sums import RoundSums
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["fedex", "flexlora", "flora", "lora_fair"]

FAIR_RIDGE = 0.01
"""LoRA-FAIR's lambda, relative to the mean squared norm of A's rows."""


def flexlora(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """FlexLoRA (Bai 2024), HLoRA: the truncated SVD of dW*; devices of lower rank get its leading columns."""

    def again(old: Factors, up: Matrix, down: Matrix, _path: str) -> Factors:
        columns, rows, _ = refactor(up, down, old.down.shape[0], filler=old.down)
        return _with(old, rows, columns)

    return _rebuilt(state, round_sums, again)


def flora(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """FLoRA (Wang 2024): stacking; dW* goes into the carried adapter, B restarts at zero.

    The paper adds dW* to the base. Here the base is immutable, so it is carried at ``adapter.lora.carried_rank``:
    exact while the stack fits, else its best approximation. A keeps its place: the next round starts from B = 0.
    """

    def again(old: Factors, up: Matrix, down: Matrix, _path: str) -> Factors:
        carried_up, carried_down = _carried(old, up, down)
        return Factors(down=old.down, up=np.zeros_like(old.up), carried_down=carried_down, carried_up=carried_up)

    return _rebuilt(state, round_sums, again)


def fedex(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """FedEx-LoRA (Singhal 2025): means of the factors, and the residual dW* - B A into the carried adapter."""
    averaged = read_factors(state.spec, zero_padded(state, round_sums))

    def again(old: Factors, up: Matrix, down: Matrix, path: str) -> Factors:
        new = averaged[path]
        carried_up, carried_down = _carried(old, np.hstack([up, -new.up]), np.vstack([down, new.down]))
        return Factors(down=new.down, up=new.up, carried_down=carried_down, carried_up=carried_up)

    return _rebuilt(state, round_sums, again)


def lora_fair(state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """LoRA-FAIR (Bian 2025): A's mean, and B corrected to come near dW*: ridge towards B's mean.

    dB = (dW* - B A) A^T (A A^T + lambda I)^-1.
    """
    averaged = read_factors(state.spec, zero_padded(state, round_sums))

    def again(old: Factors, up: Matrix, down: Matrix, path: str) -> Factors:
        new = averaged[path]
        gram = new.down @ new.down.T  # (r, r)
        ridge = FAIR_RIDGE * np.trace(gram) / len(gram)
        residual = up @ (down @ new.down.T) - new.up @ gram  # (d_out, r)
        return _with(old, new.down, new.up + np.linalg.solve(gram + ridge * np.eye(len(gram)), residual.T).T)

    return _rebuilt(state, round_sums, again)


def _rebuilt(
    state: AdapterState,
    round_sums: RoundSums,
    again: Callable[[Factors, Matrix, Matrix, str], Factors],
) -> AdapterState:
    """Every matrix rebuilt from its stacked factors, every other block by the mean."""
    if not round_sums.individuals:
        raise RunFailed('Expected each device\'s own deltas, found sums only; set secagg.mode = "off" in a simulation.')
    stacks = _stacks(state, round_sums)
    matrices = {}
    for path, old in read_factors(state.spec, state).items():
        up, down = stacks[path]
        matrices[path] = again(old, up, down, path)
    rest = {block_id: total for block_id, total in round_sums.sums.items() if not factor_of(block_id)}
    moved = mean(state, RoundSums(sums=rest, total_weight=round_sums.total_weight, owner_weights={}))
    return write_factors(moved, matrices)


def _stacks(state: AdapterState, round_sums: RoundSums) -> Mapping[str, tuple[Matrix, Matrix]]:
    """Path -> [p_1 B_1, p_2 B_2, ...] (d_out, k) and [A_1; A_2; ...] (k, d_in), each over a device's own columns."""
    ends = column_ends(state.spec)
    parts: dict[str, tuple[list[Matrix], list[Matrix]]] = {}
    total = sum(one.weight for one in round_sums.individuals)
    for one in round_sums.individuals:
        rank = max((ends[block_id] for block_id in one.deltas if factor_of(block_id) == "B"), default=0)
        if not rank:
            continue
        own = _plus(state, one.deltas)
        for path, factors in read_factors(state.spec, own, up_to={"A": rank, "B": rank}).items():
            ups, downs = parts.setdefault(path, ([], []))
            ups.append(factors.up * (one.weight / total))
            downs.append(factors.down)
    if not parts:
        raise RunFailed("Expected a device that trains LoRA in this round, found none.")
    return {path: (np.hstack(ups), np.vstack(downs)) for path, (ups, downs) in parts.items()}


def _plus(state: AdapterState, deltas: Mapping[BlockId, Matrix]) -> dict[BlockId, Matrix]:
    vectors = {block_id: state[block_id].astype(np.float64) for block_id in state}
    for block_id, delta in deltas.items():
        vectors[block_id] = vectors[block_id] + delta
    return vectors


def _carried(old: Factors, up: Matrix, down: Matrix) -> tuple[Matrix, Matrix]:
    rank = old.carried_down.shape[0]
    columns, rows, _ = refactor(np.hstack([old.carried_up, up]), np.vstack([old.carried_down, down]), rank)
    return columns, rows


def _with(old: Factors, down: Matrix, up: Matrix) -> Factors:
    return Factors(down=down, up=up, carried_down=old.carried_down, carried_up=old.carried_up)
