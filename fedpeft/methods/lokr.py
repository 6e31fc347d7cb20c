"""LoKr (Yeh et al. 2024, LyCORIS): a change of high rank as a Kronecker product.

    W x + b + scale * (C (x) D) x,    D = D_b D_a of low rank, or whole where that is no larger

C (a, c), D (b, d) for a matrix (a b, c d), each side split near its square root (``kronecker_shape``). C begins at
zero. The product is never formed: with x as a matrix X (c, d), (C (x) D) x is C (X D^T), a matrix (a, b).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.lokr import KroneckerShape, LoKr, kronecker_shape
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output, grafts_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.own_form import PREFIX, Arrays, Held, OwnForm, as_array
from fedpeft.ids import BlockId

__all__ = ["FORM", "LoKrPart", "attach_lokr"]

LOKR = "lokr"
_NAMES = {"outer": "lokr_w1", "inner": "lokr_w2", "up": "lokr_w2_a", "down": "lokr_w2_b"}
"""Ours -> peft's."""


class LoKrPart(nn.Module):
    """C ``outer``, and D as ``inner`` or as ``up`` (b, r) and ``down`` (r, d), of one matrix.

    Args:
        shape: of the factors.
        inner: D's first values: the whole matrix, or D_b and D_a.
        rank: of D.
        scale: the fixed factor of the product.
    """

    def __init__(self, shape: KroneckerShape, inner: tuple[Tensor, ...], rank: int, scale: float) -> None:
        super().__init__()
        self.shape, self.rank, self.scale = shape, rank, scale
        self.outer = nn.Parameter(torch.zeros(shape.rows, shape.columns, device=inner[0].device), requires_grad=False)
        for name, values in zip(("inner",) if shape.whole else ("up", "down"), inner, strict=True):
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y plus the scaled product's."""
        inner = self._inner()  # (b, d)
        wide = x.to(inner.dtype).reshape(*x.shape[:-1], self.shape.columns, self.shape.inner_columns)  # (..., c, d)
        narrow = functional.linear(wide, inner)  # (..., c, d) -> (..., c, b)
        change = functional.linear(narrow.transpose(-1, -2), self.outer * self.scale)  # (..., b, c) -> (..., b, a)
        return y + change.transpose(-1, -2).flatten(-2).to(y.dtype)

    def _inner(self) -> Tensor:
        if self.shape.whole:
            return cast("Tensor", self.inner)
        return cast("Tensor", self.up) @ cast("Tensor", self.down)


def attach_lokr(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft LoKr on the targets of the chosen layers; one block, matrix by matrix C before D.

    Raises:
        ConfigInvalid: the model lacks a target.
    """
    settings = adapter.of(LoKr)
    if settings is None:
        return ()
    parts: list[LoKrPart] = []
    for path, host in anatomy.target_modules(settings.targets, wanted_by="adapter.lokr"):
        shape = kronecker_shape(width_of(host, "out_features"), width_of(host, "in_features"), settings.rank)
        sizes = {"D_b": (shape.inner_rows, settings.rank), "D_a": (settings.rank, shape.inner_columns)}
        if shape.whole:
            sizes = {"D": (shape.inner_rows, shape.inner_columns)}
        inner = tuple(
            drawn(seed, f"lokr.{name}", path, size, 1.0 / math.sqrt(size[1]), device_of(host))
            for name, size in sizes.items()
        )
        parts.append(LoKrPart(shape, inner, settings.rank, settings.scale))
        graft_output(host, LOKR, parts[-1])
    parameters = tuple(parameter for part in parts for parameter in part.parameters())
    return (Block(block_id=BlockId(LOKR), method=LOKR, parameters=parameters),)


def _write(model: nn.Module, tensors: Arrays) -> dict[str, object]:
    parts = grafts_of(model, LoKrPart)
    for path, part in parts.items():
        for ours, parameter in part.named_parameters():
            tensors[f"{PREFIX}{path}.{_NAMES[ours]}"] = as_array(parameter)
    first = next(iter(parts.values()))
    alpha = first.scale * first.rank  # peft multiplies by alpha / r
    return {"r": first.rank, "alpha": alpha, "target_modules": sorted(parts), "decompose_both": False}


def _read(model: nn.Module, held: Held) -> None:
    for path, part in grafts_of(model, LoKrPart).items():
        for ours, parameter in part.named_parameters():
            parameter.copy_(held[f"{path}.{_NAMES[ours]}"])


FORM = OwnForm(peft_type="LOKR", write=_write, read=_read, on_turned=False)
