"""ReLoRA (Lialin et al. 2024) in blocks: low-rank changes, one after the other, that add up to a high-rank one.

    W x + b + scale * (B_1 A_1 + B_2 A_2 + ... + B_n A_n) x,    A_i (r, d_in), B_i (d_out, r), B_i = 0 at the start

In cycle i only B_i is trained and sent; earlier products stand, later ones are zero. After the last cycle the
change has rank n r at most, for the traffic and the optimizer state of rank r. The paper merges B A into W and
draws both anew; here the base is shared and frozen, so the products stay beside it, and every A_i is drawn from
the run's seed, its rows orthogonal to those of all other cycles. The optimizer is fresh each round anyway.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedpeft.catalogue.relora import ReLora, relora_block
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.lowrank import graft_rows, width_of
from fedpeft.grafting.tiers import Columns, Rows

__all__ = ["RELORA", "ReLoraPart", "attach_relora"]

RELORA = "relora"


class ReLoraPart(nn.Module):
    """The products of one matrix: ``A.c1``, ``B.c1``, ``A.c2``, ...

    Args:
        rows: all A below each other, (cycles * rank, d_in).
        out_features: d_out.
        cycles: how many there are.
        scale: the fixed factor.
    """

    def __init__(self, rows: Tensor, out_features: int, cycles: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A, self.B = Rows(), Columns(scale)
        rank = rows.shape[0] // cycles
        for cycle, (start, end) in enumerate(pairwise(range(0, rows.shape[0] + 1, rank)), 1):
            self.A[f"c{cycle}"] = nn.Parameter(rows[start:end].clone(), requires_grad=False)
            self.B[f"c{cycle}"] = nn.Parameter(rows.new_zeros(out_features, rank), requires_grad=False)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """All A (n r, d_in) and all B (d_out, n r), the scale in B."""
        return torch.cat(list(self.A.values())), self.scale * torch.cat(list(self.B.values()), dim=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + scale * sum of B_i A_i x."""
        changed: Tensor = self.B(self.A(x), y)
        return changed


def attach_relora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft the products on the targets of the chosen layers: for each cycle a frozen and a trained block.

    Raises:
        ConfigInvalid: the model lacks a target, or rank * cycles is above a matrix's input width.
    """
    relora = adapter.of(ReLora)
    if relora is None:
        return ()
    parts = graft_rows(
        anatomy,
        relora.targets,
        lambda _, host, rows: ReLoraPart(rows, width_of(host, "out_features"), relora.cycles, relora.scale),
        method=RELORA,
        rank=relora.rank * relora.cycles,
        seed=seed,
    )
    return tuple(
        Block(
            block_id=relora_block(factor, cycle),
            method=RELORA,
            parameters=tuple(getattr(part, factor)[f"c{cycle}"] for part in parts),
            trainable=factor == "B",
        )
        for factor in "AB"
        for cycle in range(1, relora.cycles + 1)
    )
