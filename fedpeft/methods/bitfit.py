"""BitFit (Ben Zaken, Ravfogel, Goldberg 2022): train the biases only.

Every bias b of the chosen layers (linear modules and layer norms) becomes b + delta, delta = 0 at the
start. The delta is a parameter of its own, so the frozen base stays shared and its digest true. With BitFit
in a run the biases of layer norms are BitFit's, also beside LayerNorm tuning.
"""

import torch
from torch import Tensor, nn

from fedpeft.catalogue.bitfit import BitFit
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import GRAFTS, device_of, graft_output
from fedpeft.ids import BlockId

__all__ = ["BITFIT", "BiasPart", "attach_bitfit"]

BITFIT = "bitfit"


class BiasPart(nn.Module):
    """A delta on one bias, (d_out,)."""

    def __init__(self, bias: Tensor, device: torch.device) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(bias.shape, dtype=torch.float32, device=device), requires_grad=False)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Y + delta."""
        return y + self.delta.to(y.dtype)


def attach_bitfit(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft a delta on every bias of the chosen layers.

    Raises:
        ConfigInvalid: these layers have no bias; says which methods would do.
    """
    if adapter.of(BitFit) is None:
        return ()
    hosts = [
        module
        for layer in anatomy.chosen_layers().values()
        for path, module in layer.named_modules()
        if GRAFTS not in path and isinstance(getattr(module, "bias", None), Tensor)
    ]
    if not hosts:
        problem = Problem(
            where="adapter.bitfit",
            expected="layers with biases",
            found=f"{type(anatomy.model).__name__}, whose chosen layers have none",
            remedy="Use lora, ia3, layernorm or bottleneck on this model instead.",
        )
        raise ConfigInvalid("BitFit cannot be attached to this model.", problems=[problem])
    parts = [BiasPart(host.bias, device_of(host)) for host in hosts]
    for host, part in zip(hosts, parts, strict=True):
        graft_output(host, BITFIT, part)
    return (Block(block_id=BlockId(BITFIT), method=BITFIT, parameters=tuple(part.delta for part in parts)),)
