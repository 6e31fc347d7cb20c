"""Factor normalisation: which A and B stand for a product, chosen by the coordinator after the sum.

B A = (B R)(R^-1 A) for any invertible R, a choice of gauge. Fixing R is post-processing of a sum, so it costs no
privacy. Before B is trained, A gets orthonormal rows ordered by singular value, so low-rank devices train the leading
directions; before A is trained, B gets orthonormal columns. FedSVD (Lee 2025) is the first of the two after every
round: it never leaves the row space that A began with.
"""

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import Factors, Matrix, column_ends, factor_of, read_factors, refactor, write_factors
from fedpeft.config.aggregate import Aggregate
from fedpeft.entropy import generator
from fedpeft.ids import BlockId

__all__ = ["column_energies", "fold_and_reseed", "idle_tiers", "normalise_factors"]


def normalise_factors(state: AdapterState, *, frozen: str) -> AdapterState:
    """The same products, with the factor that is frozen next orthonormal and columns by descending singular value.

    Args:
        frozen: ``A``: A = V^T, B = U Sigma; ``B``: A = Sigma V^T, B = U.
    """
    fixed = {}
    for path, old in read_factors(state.spec, state).items():
        up, down, _ = refactor(old.up, old.down, old.down.shape[0], filler=old.down)
        if frozen == "B":
            scale = np.linalg.norm(up, axis=0)  # (r,) the singular values, zeros where there are no more
            held = scale > 0
            up[:, held] /= scale[held]
            down[held] *= scale[held, None]
        fixed[path] = Factors(down=down, up=up, carried_down=old.carried_down, carried_up=old.carried_up)
    return write_factors(state, fixed)


def fold_and_reseed(state: AdapterState, *, seed: int, round_id: int) -> AdapterState:
    """B A goes into the carried adapter, truncated to its rank; A is drawn anew from a public seed, B restarts at zero.

    Escapes from the subspace that A spans, at the price of what the truncation loses. Never under differential
    privacy: each fold would bake noise in.
    """
    folded = {}
    for path, old in read_factors(state.spec, state).items():
        rank = old.carried_down.shape[0]
        up, down, _ = refactor(np.hstack([old.carried_up, old.up]), np.vstack([old.carried_down, old.down]), rank)
        fresh = generator(seed, "fold and reseed", path, round_id).standard_normal(old.down.shape)
        folded[path] = Factors(down=_orthonormal(fresh), up=np.zeros_like(old.up), carried_down=down, carried_up=up)
    return write_factors(state, folded)


def column_energies(state: AdapterState) -> dict[BlockId, float]:
    """B's tier -> its share of the squared Frobenius norm of all products; of a state whose gauge is fixed on A.

    With A's rows orthonormal, the squared norm of a column of B is a squared singular value.
    """
    shares = {
        block_id: float(np.square(state[block_id].astype(np.float64)).sum())
        for block_id in column_ends(state.spec)
        if factor_of(block_id) == "B"
    }
    total = sum(shares.values())
    return {block_id: share / total if total else 0.0 for block_id, share in shares.items()}


def idle_tiers(aggregate: Aggregate, state: AdapterState, *, round_id: int) -> frozenset[BlockId]:
    """B's tiers that round ``round_id`` need not train: their share of the energy is below ``aggregate.auto_rank``.

    A function of the committed state alone, so a resumed run drops the same tiers. The first tier always stays.
    """
    if not aggregate.auto_rank or round_id <= aggregate.auto_rank_after:
        return frozenset()
    ends, shares = column_ends(state.spec), column_energies(state)
    first = min(shares, key=lambda block_id: ends[block_id], default=None)
    return frozenset(b for b, share in shares.items() if b != first and share < aggregate.auto_rank)


def _orthonormal(rows: Matrix) -> Matrix:
    basis, triangle = np.linalg.qr(rows.T)
    return (basis * np.sign(np.diag(triangle))).T
