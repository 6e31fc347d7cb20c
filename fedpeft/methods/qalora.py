"""QA-LoRA (Xu et al. 2024): LoRA that reads groups of inputs, so that it merges into a base quantized by groups.

    W x + b + scale * B A p(x),    p(x) the sums of 32 neighbouring inputs, (d_in / 32,)

A (r, d_in / 32) is frozen and shared, with orthonormal rows from the run's seed; B (d_out, r) begins at zero. All
weights of one group of a row get the same change, scale * (B A)[row, group]: under ``int4-g32`` that is the group's
minimum, so ``merge`` adds it there and no code changes. What is lost is the rounding of the minimum to float16.
On another base the method trains alike; it merges into an int4-g32 one only.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.base.residency import PackedWeight
from fedpeft.catalogue.qalora import QaLora
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.lowrank import graft_rows, width_of
from fedpeft.ids import BlockId

__all__ = ["GROUP", "QALORA", "QaLoraPart", "attach_qalora", "merge"]

QALORA = "qalora"
GROUP = 32  # of the base's int4-g32 encoding


class QaLoraPart(nn.Module):
    """A and B of one matrix.

    Args:
        rows: A, (r, d_in / 32).
        out_features: d_out.
        scale: the fixed factor of B A.
    """

    def __init__(self, rows: Tensor, out_features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(rows, requires_grad=False)
        self.B = nn.Parameter(rows.new_zeros(out_features, rows.shape[0]), requires_grad=False)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """The same change as plain LoRA: A (r, d_in) with each column 32 times, B (d_out, r) with the scale."""
        return self.A.repeat_interleave(GROUP, dim=1), self.scale * self.B

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + scale * B A p(x)."""
        pooled = x.to(self.A.dtype).view(*x.shape[:-1], -1, GROUP).sum(dim=-1)  # (..., d_in) -> (..., d_in / 32)
        narrow = functional.linear(pooled, self.A)
        flat = y.reshape(-1, y.shape[-1]).to(self.B.dtype)
        moved = torch.addmm(flat, narrow.reshape(-1, narrow.shape[-1]), self.B.t(), alpha=self.scale)
        return moved.view(y.shape).to(y.dtype)


def attach_qalora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft QA-LoRA on the targets of the chosen layers: A frozen, B trained.

    Raises:
        ConfigInvalid: the model lacks a target, a matrix's inputs are no multiple of 32, or there are fewer groups
            than ranks.
    """
    qalora = adapter.of(QaLora)
    if qalora is None:
        return ()
    for path, host in anatomy.target_modules(qalora.targets, wanted_by="adapter.qalora"):
        width = width_of(host, "in_features")
        if width % GROUP or qalora.rank > width // GROUP:
            raise ConfigInvalid("QA-LoRA cannot be attached to this model.", problems=[_misfit(path, width)])
    parts = graft_rows(
        anatomy,
        qalora.targets,
        lambda _, host, rows: QaLoraPart(rows, width_of(host, "out_features"), qalora.scale),
        method=QALORA,
        rank=qalora.rank,
        seed=seed,
        pooled=GROUP,
    )
    return (
        Block(block_id=BlockId("qalora.A"), method=QALORA, parameters=tuple(p.A for p in parts), trainable=False),
        Block(block_id=BlockId(QALORA), method=QALORA, parameters=tuple(p.B for p in parts)),
    )


def merge(part: QaLoraPart, weight: PackedWeight) -> PackedWeight:
    """The packed weight with the change in it: other minima, the same codes and scales.

    Raises:
        ConfigInvalid: the weight is not stored as int4-g32.
    """
    if weight.encoding != "int4-g32":
        raise ConfigInvalid(f"Expected a weight stored as int4-g32 to merge QA-LoRA into, found {weight.encoding}.")
    change = part.scale * (part.B @ part.A).detach().cpu()  # (d_out, d_in / 32)
    parts: Mapping[str, Tensor] = weight.parts
    minima = (parts["min"].float() + change).half()
    return PackedWeight({**parts, "min": minima}, cast("str", weight.encoding), weight.shape)  # type: ignore[arg-type]


def _misfit(path: str, width: int) -> Problem:
    groups, rest = divmod(width, GROUP)
    if rest:
        return Problem(
            where="adapter.qalora.targets",
            expected=f"matrices whose inputs are a multiple of {GROUP}",
            found=f"{path} with {width}",
            remedy="Leave this target out, or use lora or dora.",
        )
    return Problem(
        where="adapter.qalora.rank",
        expected=f"at most {groups}, the groups of {GROUP} inputs of {path}",
        found="more",
        remedy="Lower the rank, or use lora.",
    )
