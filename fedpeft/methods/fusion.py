"""AdapterFusion (Pfeiffer et al. 2021): attention over the adapters of several tasks, which stay as they are.

    z_n = scale * (U_n act(D_n y + d_n) + u_n),    y + sum_n s_n V z_n,    s = softmax_n((Q y) . (K z_n))

y is the feed-forward's output, before the residual; the adapters are pfeiffer bottlenecks of earlier runs, a frozen
block each (``fusion.TASK``), which the coordinator fills in from their exported folders (``with_sources``) and sends
once. Q, K and V (w, w) of every layer are trained: 3 w^2 a layer. V is the identity at the start, Q and K are small and
drawn from the seed: the model begins near the base with the mean of the adapters on it. The secure sum's mean is that
of Q, K and V.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.fusion import Fusion
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.narrow import check_width, narrow
from fedpeft.ids import BlockId

__all__ = ["FUSION", "FusedAdapter", "FusionPart", "attach_fusion"]

FUSION = "fusion"
_DEVIATION = 0.02


class FusedAdapter(nn.Module):
    """One task's bottleneck: D, d, U, u as ``down``, ``down_bias``, ``up``, ``up_bias``."""

    def __init__(self, settings: Fusion, wide: int, device: torch.device) -> None:
        super().__init__()
        self.scale, self.activation = settings.scale, settings.activation
        self.down = nn.Parameter(torch.zeros(settings.width, wide, device=device), requires_grad=False)
        self.down_bias = nn.Parameter(torch.zeros(settings.width, device=device), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(wide, settings.width, device=device), requires_grad=False)
        self.up_bias = nn.Parameter(torch.zeros(wide, device=device), requires_grad=False)

    def forward(self, y: Tensor) -> Tensor:
        """Z = scale * f(y)."""
        return self.scale * narrow(y, self.down, self.up, self.activation, self.down_bias, self.up_bias)


class FusionPart(nn.Module):
    """One layer's ``query`` Q, ``key`` K and ``value`` V, (w, w), over its ``adapters``."""

    def __init__(self, adapters: Mapping[str, FusedAdapter], query: Tensor, key: Tensor) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)
        self.query = nn.Parameter(query, requires_grad=False)
        self.key = nn.Parameter(key, requires_grad=False)
        self.value = nn.Parameter(torch.eye(len(query), device=query.device), requires_grad=False)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Y + sum_n s_n V z_n."""
        wide = y.to(self.query.dtype)
        made = torch.stack([adapter(wide) for adapter in self.adapters.values()], dim=-2)  # (..., n, w)
        asked = functional.linear(wide, self.query)[..., None, :]  # (..., 1, w)
        weights = torch.softmax((asked * functional.linear(made, self.key)).sum(dim=-1), dim=-1)  # (..., n)
        chosen = (weights[..., None] * made).sum(dim=-2)  # V is linear: it may come after the sum
        return y + functional.linear(chosen, self.value).to(y.dtype)


def attach_fusion(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft the fusion on the chosen layers; a frozen block a task, and one of Q, K, V, layer by layer.

    Raises:
        ConfigInvalid: the bottlenecks are wider than the model.
    """
    settings = adapter.of(Fusion)
    if settings is None:
        return ()
    parts: list[FusionPart] = []
    for path, linear in anatomy.slot_modules("down", wanted_by="adapter.fusion").items():
        wide, device = check_width(path, linear, settings.width, wanted_by="adapter.fusion"), device_of(linear)
        adapters = {task: FusedAdapter(settings, wide, device) for task in settings.tasks}
        query, key = (drawn(seed, f"fusion.{name}", path, (wide, wide), _DEVIATION, device) for name in ("q", "k"))
        parts.append(FusionPart(adapters, query, key))
        graft_output(linear, FUSION, parts[-1])
    frozen = [
        Block(
            block_id=BlockId(f"{FUSION}.{task}"),
            method=FUSION,
            parameters=tuple(parameter for part in parts for parameter in part.adapters[task].parameters()),
            trainable=False,
        )
        for task in settings.tasks
    ]
    trained = tuple(parameter for part in parts for parameter in (part.query, part.key, part.value))
    return (*frozen, Block(block_id=BlockId(FUSION), method=FUSION, parameters=trained))
