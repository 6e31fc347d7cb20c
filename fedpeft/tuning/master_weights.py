"""What an optimizer steps: parameters in float32, or float32 copies of narrower ones.

A step of a hundredth is lost on a bfloat16 value of five, whose neighbours are a thirty-second away. So for a round the
device keeps such values in float32 too, adds its steps there, and rounds for each forward pass (Micikevicius 2018).
"""

from collections.abc import Mapping

import torch
from torch import nn

from fedpeft.ids import BlockId

__all__ = ["MasterWeights"]


class MasterWeights:
    """The masters of trained parameters.

    Args:
        trained: parameters by block.

    Attributes:
        blocks: the masters, float32, in the same order; a float32 parameter is its own.
    """

    def __init__(self, trained: Mapping[BlockId, list[nn.Parameter]]) -> None:
        self.blocks = {block_id: [_master(p) for p in parameters] for block_id, parameters in trained.items()}
        self._pairs = [
            (parameter, master)
            for block_id, parameters in trained.items()
            for parameter, master in zip(parameters, self.blocks[block_id], strict=True)
            if parameter is not master
        ]

    def take_gradients(self) -> None:
        """After the backward pass: the gradients move to the masters."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_values(self) -> None:
        """After the optimizer's step: the parameters are the masters, rounded."""
        for parameter, master in self._pairs:
            parameter.copy_(master)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
