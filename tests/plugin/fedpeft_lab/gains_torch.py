"""Its torch part: a graft on each module, and the parameters that make its one block."""

import torch
from torch import Tensor, nn

from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import graft_output
from fedpeft.ids import BlockId
from fedpeft_lab.gains import Gains


class Gain(nn.Module):
    """(1 + delta) * y; zero at the start, so the model computes what it did."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Of the module's output y."""
        return y * (1.0 + self.delta).to(y.dtype)


def attach(anatomy: Anatomy, settings: Gains, seed: int) -> tuple[Block, ...]:
    """Hang a gain on each value matrix of the chosen layers."""
    gains = []
    for host in anatomy.slot_modules("v", wanted_by="adapter.gains").values():
        gains.append(Gain(host.out_features))
        graft_output(host, "gains", gains[-1])
    return (Block(block_id=BlockId("gains"), method="gains", parameters=tuple(gain.delta for gain in gains)),)
