"""DoRA (Liu et al. 2024): a matrix as magnitude times direction, each with a change of its own.

    W' = m * (W + scale * B A) / |W + scale * B A|,    m = |W| + delta

|.| is the norm of each row (one output), (d_out,); A (r, d_in) is frozen and shared, drawn from the run's seed,
B (d_out, r) and delta (d_out,) begin at zero. As in the paper (section 4.3) no gradient goes through the norm.
r d_out + d_out trained parameters a matrix.

The norm needs no dense matrix: |W + s B A|^2 = |W|^2 + 2 s (W A^T) * B + s^2 (B A A^T) * B, summed over the rank,
and W A^T and A A^T are computed once, since A does not change. So a packed base stays packed.

The secure sum's mean is the mean of B and of delta; the matrices are not linear in them together.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.dora import Dora
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.lowrank import graft_rows, width_of
from fedpeft.grafting.rows import weight_of
from fedpeft.ids import BlockId

__all__ = ["DORA", "DoraPart", "attach_dora"]

DORA = "dora"


class DoraPart(nn.Module):
    """A, B and the change of magnitude of one matrix.

    Args:
        host: the linear module; read, never changed.
        rows: A, (r, d_in).
        scale: the fixed factor of B A.
    """

    def __init__(self, host: nn.Module, rows: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(rows, requires_grad=False)
        self.B = nn.Parameter(rows.new_zeros(width_of(host, "out_features"), rows.shape[0]), requires_grad=False)
        self.delta = nn.Parameter(rows.new_zeros(width_of(host, "out_features")), requires_grad=False)
        # In a tuple, so that the host is no child of its own part; the base's tensors are those of every replica.
        self._host = (host,)
        self.register_buffer("squares", _weight(host).square().sum(dim=1), persistent=False)  # |W|^2, (d_out,)
        self._products: tuple[Tensor, int, Tensor, Tensor] | None = None

    def magnitude(self) -> Tensor:
        """M, (d_out,)."""
        return cast("Tensor", self.squares).sqrt() + self.delta

    def norm(self) -> Tensor:
        """|W + scale * B A| of each row, (d_out,), without gradient."""
        with torch.no_grad():
            mixed, gram = self._known_products()
            up = self.B.float()
            cross = (mixed * up).sum(dim=1)
            own = ((up @ gram) * up).sum(dim=1)
            squares = cast("Tensor", self.squares) + 2 * self.scale * cross + self.scale**2 * own
            return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """M / norm * (y - b + scale * B A x) + b."""
        gain = self.magnitude() / self.norm()  # exactly 1 at the start
        narrow = functional.linear(x.to(self.A.dtype), self.A)  # (..., d_in) -> (..., r)
        flat = y.reshape(-1, y.shape[-1]).to(self.B.dtype)
        moved = (
            torch.addmm(flat, narrow.reshape(-1, narrow.shape[-1]), self.B.t(), alpha=self.scale)
            .view(y.shape)
            .to(gain.dtype)
        )
        bias = cast("nn.Linear", self._host[0]).bias
        result = moved * gain if bias is None else torch.addcmul((1.0 - gain) * bias, moved, gain)
        return result.to(y.dtype)

    def _known_products(self) -> tuple[Tensor, Tensor]:
        """W A^T (d_out, r) and A A^T (r, r); computed anew only when A has changed."""
        held = self._products
        if held is None or held[0] is not self.A or held[1] != self.A._version:
            down = self.A.float()
            held = (self.A, self.A._version, _weight(self._host[0]) @ down.t(), down @ down.t())
            self._products = held
        return held[2], held[3]


def attach_dora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft DoRA on the targets of the chosen layers: A frozen, B and delta matrix by matrix in one block.

    Raises:
        ConfigInvalid: the model lacks a target, or the rank is above a matrix's input width.
    """
    dora = adapter.of(Dora)
    if dora is None:
        return ()
    parts = graft_rows(
        anatomy,
        dora.targets,
        lambda _, host, rows: DoraPart(host, rows, dora.scale),
        method=DORA,
        rank=dora.rank,
        seed=seed,
    )
    trained = tuple(parameter for part in parts for parameter in (part.B, part.delta))
    return (
        Block(block_id=BlockId("dora.A"), method=DORA, parameters=tuple(part.A for part in parts), trainable=False),
        Block(block_id=BlockId(DORA), method=DORA, parameters=trained),
    )


def _weight(host: nn.Module) -> Tensor:
    """(d_out, d_in), float32; unpacked anew from a packed base."""
    return weight_of(host).detach()
