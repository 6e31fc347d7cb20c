"""Bottleneck adapters: a narrow network with a residual, serial (Houlsby et al. 2019) or parallel (He et al. 2022).

    f(h) = scale * (U act(D h + d) + u),    D (m, w), d (m,), U (w, m), u (w,);  m the width, w the hidden size

- ``houlsby``: y + f(y) on the output y of attention and of the feed-forward, before the residual is added.
  Houlsby also train the layer norms: add ``[adapter.layernorm]``.
- ``pfeiffer`` (Pfeiffer et al. 2021): the feed-forward's output alone, in the same form.
- ``parallel``: beside the feed-forward, FFN(x) + f(x) on its input x.

U, u and d are zero at the start, so the model begins as the base; D is drawn from the run's seed. 2 w m + m + w
parameters each. The network is nonlinear: the secure sum's mean is the mean of its parameters, not of its
functions (unlike LoRA's B).
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.config.model import Adapter, Bottleneck
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.ids import BlockId
from fedpeft.methods.anatomy import Anatomy
from fedpeft.methods.block import Block
from fedpeft.methods.graft import device_of, graft_output, graft_residual
from fedpeft.methods.lowrank import width_of

__all__ = ["BOTTLENECK", "BottleneckPart", "attach_bottleneck"]

BOTTLENECK = "bottleneck"
_SERIAL: Mapping[str, tuple[str, ...]] = MappingProxyType({"houlsby": ("o", "down"), "pfeiffer": ("down",)})


class BottleneckPart(nn.Module):
    """One bottleneck: D, d, U, u as ``down``, ``down_bias``, ``up``, ``up_bias``.

    Args:
        down: D at the start, (m, w).
        settings: activation and scale.
        serial: whether it reads the host's output; else it reads its input.
    """

    def __init__(self, down: Tensor, settings: Bottleneck, *, serial: bool) -> None:
        super().__init__()
        narrow, wide = down.shape
        self.scale, self.activation, self.serial = settings.scale, settings.activation, serial
        self.down = nn.Parameter(down, requires_grad=False)
        self.down_bias = nn.Parameter(down.new_zeros(narrow), requires_grad=False)
        self.up = nn.Parameter(down.new_zeros(wide, narrow), requires_grad=False)
        self.up_bias = nn.Parameter(down.new_zeros(wide), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + f(y), or y + f(x) beside the host."""
        h = (y if self.serial else x).to(self.down.dtype)
        narrow = functional.linear(h, self.down, self.down_bias)  # (..., w) -> (..., m)
        narrow = functional.relu(narrow) if self.activation == "relu" else functional.gelu(narrow)
        return torch.add(y, functional.linear(narrow, self.up, self.up_bias).to(y.dtype), alpha=self.scale)


def attach_bottleneck(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft bottlenecks on the chosen layers; one block, bottleneck by bottleneck: D, d, U, u.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model.
    """
    settings = adapter.bottleneck
    if settings is None:
        return ()
    serial = settings.placement != "parallel"
    parts: list[BottleneckPart] = []
    for slot in _SERIAL.get(settings.placement, ("down",)):
        for path, linear in anatomy.slot_modules(slot, wanted_by="adapter.bottleneck").items():
            part = BottleneckPart(_initial_down(path, linear, settings, seed), settings, serial=serial)
            if serial:
                graft_output(linear, BOTTLENECK, part)
            else:
                _graft_beside(anatomy, path.rpartition(".")[0], part)
            parts.append(part)
    parameters = tuple(p for part in parts for p in (part.down, part.down_bias, part.up, part.up_bias))
    return (Block(block_id=BlockId(BOTTLENECK), method=BOTTLENECK, parameters=parameters),)


def _graft_beside(anatomy: Anatomy, path: str, part: BottleneckPart) -> None:
    """Put ``part`` beside the feed-forward; ``path``: of the module that holds its second matrix."""
    host = anatomy.model.get_submodule(path)
    if anatomy.slots["up"].rpartition(".")[0] == anatomy.slots["down"].rpartition(".")[0]:
        graft_output(host, BOTTLENECK, part)  # the host is the whole feed-forward (Llama)
    else:
        graft_residual(host, BOTTLENECK, part)  # the host adds the feed-forward's input x as its residual (BERT)


def _initial_down(path: str, linear: nn.Module, settings: Bottleneck, seed: int) -> Tensor:
    """D, (m, w): rows of norm one on average, drawn for this place from the run's seed."""
    wide = width_of(linear, "out_features")
    if settings.width > wide:
        problem = Problem(
            where="adapter.bottleneck.width",
            expected=f"at most {wide}, the output of {path}",
            found=str(settings.width),
        )
        raise ConfigInvalid("The bottleneck is wider than the model.", problems=[problem])
    rows = generator(seed, "bottleneck.down", path).standard_normal((settings.width, wide)) / math.sqrt(wide)
    return torch.from_numpy(rows.astype(np.float32)).to(device_of(linear))
