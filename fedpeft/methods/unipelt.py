"""UniPELT (Mao et al. 2022): LoRA, a prefix and a bottleneck in every layer, each behind a trained gate.

    q, v:       W x + g_L(x) * scale * B A x
    attention:  softmax([g_P q K_p; q K]) [g_P V_p; V],  g_P of the query's token
    FFN:        y + g_A(y) * (U act(D y + d) + u)
    g(x) = sigmoid(w x + b),  one number per token

The paper averages a gate over the sentence; here it belongs to a token, since an average would show a decoder what
follows, and depend on padding. Gates begin at one half, B and U at zero: but for the prefix the model begins as the
base. A layer has r (2 h + w_q + w_v) parameters for LoRA, 2 p w for the prefix, 2 h m + m + h for the bottleneck and
4 (h + 1) for the gates of q, v, prefix and bottleneck. The secure sum's mean is that of the parameters.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.common import Activation
from fedpeft.catalogue.unipelt import Unipelt
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.attention import AttentionInputs, graft_attention, with_keys
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import GRAFTS, device_of, graft_output
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.narrow import check_width, narrow
from fedpeft.ids import BlockId
from fedpeft.methods.prefix import split_heads

__all__ = ["UNIPELT", "Gate", "GatedBottleneck", "GatedLora", "GatedPrefix", "attach_unipelt"]

UNIPELT = "unipelt"


class Gate(nn.Module):
    """Sigmoid(w x + b): ``weight`` (h,) and ``bias`` (1,), zero at the start."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., h) -> (..., 1)."""
        opened: Tensor = torch.sigmoid(functional.linear(x.to(self.weight.dtype), self.weight[None], self.bias))
        return opened


class GatedLora(nn.Module):
    """LoRA of one matrix, ``down`` A (r, d_in) and ``up`` B (d_out, r), and its gate.

    On the query matrix it also opens the gate of the layer's prefix, since it sees what the queries are made of.
    """

    def __init__(self, down: Tensor, out_features: int, scale: float, *, opens_prefix: bool) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(down.new_zeros(out_features, len(down)), requires_grad=False)
        self.gate = Gate(down.shape[1], down.device)
        self.prefix_gate = Gate(down.shape[1], down.device) if opens_prefix else None
        self.opened: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + g(x) * scale * B A x."""
        if self.prefix_gate is not None:
            self.opened = self.prefix_gate(x)  # (b, s, 1)
        change = functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up)
        opened: Tensor = self.gate(x)
        return y + (self.scale * opened * change).to(y.dtype)


class GatedPrefix(nn.Module):
    """``key`` K_p and ``value`` V_p of one layer, (p, w).

    Args:
        key, value: at the start.
        query: the path of the query matrix in the attention module, whose part opens the gate.
    """

    def __init__(self, key: Tensor, value: Tensor, query: str) -> None:
        super().__init__()
        self.query = query
        self.key = nn.Parameter(key, requires_grad=False)
        self.value = nn.Parameter(value, requires_grad=False)
        self.opened: Tensor | None = None

    def before(self, host: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """Twice the width: the first half meets the text, the gated second half the prefix."""
        lora = host.get_submodule(f"{self.query}.{GRAFTS}.{UNIPELT}")
        self.opened, lora.opened = lora.opened[:, None], None  # type: ignore[index, assignment] # (b, 1, s, 1)
        key, value = (split_heads(rows[None], inputs) for rows in (self.key, self.value))  # (1, k, p, d)
        wide = AttentionInputs(
            query=torch.cat((inputs.query, self.opened.to(inputs.query.dtype) * inputs.query), dim=-1),
            key=functional.pad(inputs.key, (0, inputs.key.shape[-1])),
            value=functional.pad(inputs.value, (0, inputs.value.shape[-1])),
            mask=inputs.mask,
        )
        return with_keys(wide, functional.pad(key, (key.shape[-1], 0)), functional.pad(value, (value.shape[-1], 0)))

    def after(self, host: nn.Module, inputs: AttentionInputs, mixed: Tensor) -> Tensor:
        """(b, h, s, 2 d) -> (b, h, s, d)."""
        halves: tuple[Tensor, ...] = mixed.chunk(2, dim=-1)
        opened, self.opened = self.opened, None
        return halves[0] if opened is None else halves[0] + opened.to(mixed.dtype) * halves[1]


class GatedBottleneck(nn.Module):
    """A bottleneck after the feed-forward and its gate."""

    def __init__(self, down: Tensor, activation: Activation) -> None:
        super().__init__()
        rows, wide = down.shape
        self.activation = activation
        self.down = nn.Parameter(down, requires_grad=False)
        self.down_bias = nn.Parameter(down.new_zeros(rows), requires_grad=False)
        self.up = nn.Parameter(down.new_zeros(wide, rows), requires_grad=False)
        self.up_bias = nn.Parameter(down.new_zeros(wide), requires_grad=False)
        self.gate = Gate(wide, down.device)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Y + g(y) * f(y)."""
        added = narrow(y, self.down, self.up, self.activation, self.down_bias, self.up_bias)
        opened: Tensor = self.gate(y)
        return y + (opened * added).to(y.dtype)


def attach_unipelt(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft the three parts on every chosen layer; one block: LoRA of q and v, prefixes, bottlenecks, each with gates.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model.
    """
    settings = adapter.of(Unipelt)
    if settings is None:
        return ()
    parts: list[nn.Module] = []
    for slot in ("q", "v"):
        for path, host in anatomy.slot_modules(slot, wanted_by="adapter.unipelt").items():
            wide = width_of(host, "in_features")
            down = drawn(seed, "unipelt.lora", path, (settings.rank, wide), 1.0 / math.sqrt(wide), device_of(host))
            out = width_of(host, "out_features")
            parts.append(GatedLora(down, out, settings.scale, opens_prefix=slot == "q"))
            graft_output(host, UNIPELT, parts[-1])
    queries, keys = (anatomy.attentions(slot, wanted_by="adapter.unipelt") for slot in ("q", "k"))
    for (path, (attention, _, host)), (_, query, _) in zip(keys.items(), queries.values(), strict=True):
        shape, device = (settings.length, width_of(host, "out_features")), device_of(host)
        key, value = (drawn(seed, f"unipelt.{side}", path, shape, 0.02, device) for side in ("key", "value"))
        parts.append(GatedPrefix(key, value, query))
        graft_attention(anatomy, attention, UNIPELT, parts[-1])
    for path, host in anatomy.slot_modules("down", wanted_by="adapter.unipelt").items():
        wide = check_width(path, host, settings.width, wanted_by="adapter.unipelt")
        shape, deviation = (settings.width, wide), 1.0 / math.sqrt(wide)
        down = drawn(seed, "unipelt.down", path, shape, deviation, device_of(host))
        parts.append(GatedBottleneck(down, settings.activation))
        graft_output(host, UNIPELT, parts[-1])
    parameters = tuple(parameter for part in parts for parameter in part.parameters())
    return (Block(block_id=BlockId(UNIPELT), method=UNIPELT, parameters=parameters),)
