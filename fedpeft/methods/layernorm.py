"""LayerNorm tuning (Zhao et al. 2024; Qi et al. 2022): train the norms only.

Every norm n(x) * w + b of the chosen layers becomes n(x) * (w + dw) + (b + db), both deltas zero at the
start; n is the normalised input of a LayerNorm or an RMSNorm. Norms outside the layers (embeddings, a last
norm before the head) are left alone, as the activation cache demands.

A norm's bias belongs to one block: BitFit's when the run has BitFit, else this one. A norm without a bias
(RMSNorm) has a gain only.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.layernorm import LayerNorm
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import GRAFTS, device_of, graft_output
from fedpeft.ids import BlockId

__all__ = ["LAYERNORM", "NormPart", "attach_layernorm"]

LAYERNORM = "layernorm"
_UNCENTRED = re.compile("RMSNorm|^T5LayerNorm$")


class NormPart(nn.Module):
    """Deltas on one norm: ``gain`` (d,) and, where it trains the bias, ``bias`` (d,).

    Args:
        width: d, the norm's.
        eps: the norm's, added to the variance or to the mean square.
        centred: whether the norm subtracts the mean: LayerNorm does, RMSNorm does not.
        with_bias: whether there is a delta on the bias.
        device: where the norm is.
    """

    def __init__(self, *, width: int, eps: float, centred: bool, with_bias: bool, device: torch.device) -> None:
        super().__init__()
        self.eps, self.centred = eps, centred
        self.gain = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(width, device=device), requires_grad=False) if with_bias else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + n(x) * gain + bias."""
        width, wide = self.gain.shape, x.to(self.gain.dtype)
        if self.centred:
            moved = functional.layer_norm(wide, width, eps=self.eps)
        else:
            moved = functional.rms_norm(wide, width, eps=self.eps)
        moved = moved * self.gain if self.bias is None else torch.addcmul(self.bias, moved, self.gain)
        return y + moved.to(y.dtype)


def attach_layernorm(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft deltas on every norm of the chosen layers; one block, norm by norm, gain before bias.

    Raises:
        ConfigInvalid: a layer has a norm of a kind that is not known here.
    """
    if adapter.of(LayerNorm) is None:
        return ()
    parts: list[NormPart] = []
    for layer in anatomy.chosen_layers().values():
        for path, host in layer.named_modules():
            if GRAFTS in path or not _is_norm(host):
                continue
            part = _part_for(host, with_bias=adapter.of(BitFit) is None)
            graft_output(host, LAYERNORM, part)
            parts.append(part)
    parameters = tuple(p for part in parts for p in (part.gain, part.bias) if p is not None)
    return (Block(block_id=BlockId(LAYERNORM), method=LAYERNORM, parameters=parameters),)


def _is_norm(module: nn.Module) -> bool:
    """A module with one gain a feature of its own: no matrix, no submodule that could hold one."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1


def _part_for(host: nn.Module, *, with_bias: bool) -> NormPart:
    centred = isinstance(host, nn.LayerNorm)
    eps = getattr(host, "eps", getattr(host, "variance_epsilon", None))
    if not isinstance(eps, float) or not (centred or _UNCENTRED.search(type(host).__name__)):
        raise ConfigInvalid(
            f"Expected a LayerNorm or an RMSNorm, found {type(host).__name__}; take [adapter.layernorm] out of the run."
        )
    has_bias = isinstance(getattr(host, "bias", None), Tensor)
    width = host.get_parameter("weight").shape[0]
    return NormPart(width=width, eps=eps, centred=centred, with_bias=with_bias and has_bias, device=device_of(host))
