"""IA3 (Liu et al. 2022): rescale keys, values and the inner activation of the MLP.

k, v become (1 + delta) * k, (1 + delta) * v; the input h of the MLP's second matrix becomes (1 + delta) * h.
The block stores the delta on one, zero at the start, so that it is summed and clipped like any other.
"""

import torch
from torch import Tensor, nn

from fedpeft.catalogue.ia3 import Ia3
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_input, graft_output
from fedpeft.grafting.lowrank import width_of
from fedpeft.ids import BlockId

__all__ = ["IA3", "InputGain", "OutputGain", "attach_ia3"]

IA3 = "ia3"


class OutputGain(nn.Module):
    """(1 + delta) on a host's output, delta (d_out,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """(1 + delta) * y."""
        return y * (1.0 + self.delta).to(y.dtype)


class InputGain(nn.Module):
    """(1 + delta) on a host's input, delta (d_in,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1 + delta) * x."""
        return x * (1.0 + self.delta).to(x.dtype)


def attach_ia3(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft gains on k, v and the input of the MLP's second matrix in the chosen layers."""
    if adapter.of(Ia3) is None:
        return ()
    deltas: list[nn.Parameter] = []
    for slot in ("k", "v"):
        for host in anatomy.slot_modules(slot, wanted_by="adapter.ia3").values():
            gain = OutputGain(width_of(host, "out_features"), device_of(host))
            graft_output(host, IA3, gain)
            deltas.append(gain.delta)
    for host in anatomy.slot_modules("down", wanted_by="adapter.ia3").values():
        inner = InputGain(width_of(host, "in_features"), device_of(host))
        graft_input(host, IA3, inner)
        deltas.append(inner.delta)
    return (Block(block_id=BlockId(IA3), method=IA3, parameters=tuple(deltas)),)
