"""LoHa (Hyeon-Woo, Ye-Bin, Oh 2022, FedPara): a change of high rank from two of low rank.

    W x + b + scale * ((B_1 A_1) * (B_2 A_2)) x,    * entry by entry

A_i (r, d_in), B_i (d_out, r). B_2 begins at zero, the other three normal, as the lycoris library and peft have it.
The product of two matrices of rank r has rank up to r * r, from 2 r (d_in + d_out) values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.loha import LoHa
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output, grafts_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.own_form import PREFIX, Arrays, Held, OwnForm, as_array
from fedpeft.ids import BlockId

__all__ = ["FORM", "LoHaPart", "attach_loha"]

LOHA = "loha"
_NAMES = {"up": "hada_w1_a", "down": "hada_w1_b", "other_up": "hada_w2_a", "other_down": "hada_w2_b"}
"""Ours -> peft's."""


class LoHaPart(nn.Module):
    """B_1 ``up``, A_1 ``down``, B_2 ``other_up``, A_2 ``other_down`` of one matrix.

    Args:
        up, down, other_down: their first values.
        scale: the fixed factor of the product.
    """

    def __init__(self, up: Tensor, down: Tensor, other_down: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.up = nn.Parameter(up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)
        self.other_up = nn.Parameter(torch.zeros_like(up), requires_grad=False)
        self.other_down = nn.Parameter(other_down, requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y plus the scaled product's."""
        change = (self.up @ self.down) * (self.other_up @ self.other_down)  # (d_out, d_in)
        return y + functional.linear(x.to(change.dtype), change * self.scale).to(y.dtype)


def attach_loha(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft LoHa on the targets of the chosen layers; one block, matrix by matrix B_1, A_1, B_2, A_2.

    Raises:
        ConfigInvalid: the model lacks a target.
    """
    settings = adapter.of(LoHa)
    if settings is None:
        return ()
    parts: list[LoHaPart] = []
    for path, host in anatomy.target_modules(settings.targets, wanted_by="adapter.loha"):
        out, width, rank, device = *_sides(host), settings.rank, device_of(host)
        up = drawn(seed, "loha.B1", path, (out, rank), 0.1, device)
        down, other = (drawn(seed, f"loha.{name}", path, (rank, width), 1.0, device) for name in ("A1", "A2"))
        parts.append(LoHaPart(up, down, other, settings.scale))
        graft_output(host, LOHA, parts[-1])
    parameters = tuple(getattr(part, name) for part in parts for name in _NAMES)
    return (Block(block_id=BlockId(LOHA), method=LOHA, parameters=parameters),)


def _sides(host: nn.Module) -> tuple[int, int]:
    return width_of(host, "out_features"), width_of(host, "in_features")


def _write(model: nn.Module, tensors: Arrays) -> dict[str, object]:
    parts = grafts_of(model, LoHaPart)
    for path, part in parts.items():
        for ours, theirs in _NAMES.items():
            tensors[f"{PREFIX}{path}.{theirs}"] = as_array(part.get_parameter(ours))
    first = next(iter(parts.values()))
    rank = first.down.shape[0]
    return {"r": rank, "alpha": first.scale * rank, "target_modules": sorted(parts)}  # peft multiplies by alpha / r


def _read(model: nn.Module, held: Held) -> None:
    for path, part in grafts_of(model, LoHaPart).items():
        for ours, theirs in _NAMES.items():
            part.get_parameter(ours).copy_(held[f"{path}.{theirs}"])


FORM = OwnForm(peft_type="LOHA", write=_write, read=_read, on_turned=False)
