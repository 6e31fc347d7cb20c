"""DyLoRA (Valipour et al. 2023): one adapter that is good at every rank up to r.

    W x + b + scale * B[:, :k] A[:k] x,    k drawn for each step of training, all of r otherwise

A is frozen and shared, as LoRA's is, with orthonormal rows from the run's seed; B (d_out, r) begins at zero. Every
matrix of a model has the same k in a step; k follows from the device's seed and the step, uniform over 1..r. The
paper divides by k; here the scale is the same at every rank, so that a cut adapter is a prefix of the whole one.
Cut it after training: the first k rows of A and columns of B are the adapter of rank k.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.dylora import DyLora
from fedpeft.config.model import Adapter
from fedpeft.entropy import derive_seed
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.lowrank import graft_rows, width_of
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId

__all__ = ["DYLORA", "DyLoraPart", "attach_dylora"]

DYLORA = "dylora"


class DyLoraPart(SteppedPart):
    """A and B of one matrix, and how many ranks count now.

    Args:
        rows: A, (r, d_in).
        out_features: d_out.
        scale: the fixed factor of B A.

    Attributes:
        active: ranks that the forward pass uses; r outside of training steps.
    """

    def __init__(self, rows: Tensor, out_features: int, scale: float) -> None:
        super().__init__()
        self.scale, self.active = scale, rows.shape[0]
        self.A = nn.Parameter(rows, requires_grad=False)
        self.B = nn.Parameter(rows.new_zeros(out_features, rows.shape[0]), requires_grad=False)

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the step's rank, while this block is trained."""
        if self.B.requires_grad:
            self.active = 1 + derive_seed(seed, "dylora", step) % self.A.shape[0]

    def after_backward(self) -> None:
        """Every rank counts again."""
        self.active = self.A.shape[0]

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r), the scale in B."""
        return self.A, self.scale * self.B

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + scale * B A x over the active ranks."""
        narrow = functional.linear(x.to(self.A.dtype), self.A[: self.active])
        flat = y.reshape(-1, y.shape[-1]).to(self.B.dtype)
        up = self.B[:, : self.active]
        return torch.addmm(flat, narrow.reshape(-1, self.active), up.t(), alpha=self.scale).view(y.shape).to(y.dtype)


def attach_dylora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft DyLoRA on the targets of the chosen layers: A frozen, B trained.

    Raises:
        ConfigInvalid: the model lacks a target, or the rank is above a matrix's input width.
    """
    dylora = adapter.of(DyLora)
    if dylora is None:
        return ()
    parts = graft_rows(
        anatomy,
        dylora.targets,
        lambda _, host, rows: DyLoraPart(rows, width_of(host, "out_features"), dylora.scale),
        method=DYLORA,
        rank=dylora.rank,
        seed=seed,
    )
    return (
        Block(block_id=BlockId("dylora.A"), method=DYLORA, parameters=tuple(p.A for p in parts), trainable=False),
        Block(block_id=BlockId(DYLORA), method=DYLORA, parameters=tuple(p.B for p in parts)),
    )
