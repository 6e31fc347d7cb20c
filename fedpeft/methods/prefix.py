"""Trained keys and values before each layer's own: prefix-tuning and P-tuning v2.

    softmax(q [K_p; K]^T / sqrt(d)) [V_p; V],    K_p, V_p (p, w);  p the prefix' length, w the width of keys

- ``p_tuning_v2`` (Liu et al. 2022): K_p and V_p of each layer are the parameters, 2 p w a layer.
- ``prefix`` (Li and Liang 2021): [K_p, V_p] = O tanh(E M^T + m) + o from one table E (p, h) and one inner layer
  M (n, h), m (n,) for all layers, and O (2 w, n), o (2 w,) of each: h (p + n) + n + 2 w (n + 1) a layer.

Prefix keys have no position: the text keeps its own, so the layers below and a cache of them are untouched. A prefix
takes attention from the text at once: the model does not begin as the base. The secure sum's mean is that of the
parameters.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.prefix import Prefix
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.attention import AttentionInputs, graft_attention, with_keys
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.lowrank import width_of
from fedpeft.ids import BlockId

__all__ = ["PREFIX", "P_TUNING_V2", "MadePrefix", "PlainPrefix", "PrefixTrunk", "attach_p_tuning_v2", "attach_prefix"]

PREFIX, P_TUNING_V2 = "prefix", "p_tuning_v2"
_DEVIATION = 0.02  # of the entries at the start, as transformers draws embeddings


class PlainPrefix(nn.Module):
    """K_p and V_p of one layer as parameters ``key`` and ``value``, (p, w)."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key = nn.Parameter(key, requires_grad=False)
        self.value = nn.Parameter(value, requires_grad=False)

    def rows(self) -> tuple[Tensor, Tensor]:
        """K_p and V_p, (p, w)."""
        return self.key, self.value

    def forward(self, examples: Tensor) -> Tensor:
        """K_p and V_p for each of b examples, (b, 2, p, w): so the gradient of each is there for hooks."""
        return torch.stack(self.rows()).expand(len(examples), -1, -1, -1)

    def before(self, host: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """The layer's keys and values with the prefix in front."""
        # Detached: nothing of them is in the rows, and a backward hook waits for the gradients of all inputs.
        return with_keys(inputs, *(split_heads(rows, inputs) for rows in self(inputs.key.detach()).unbind(1)))

    def after(self, host: nn.Module, inputs: AttentionInputs, mixed: Tensor) -> Tensor:
        """Nothing to add."""
        return mixed


class PrefixTrunk(nn.Module):
    """What the layers of one prefix share: ``table`` E, ``inner`` M, ``inner_bias`` m."""

    def __init__(self, table: Tensor, inner: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)
        self.inner = nn.Parameter(inner, requires_grad=False)
        self.inner_bias = nn.Parameter(inner.new_zeros(inner.shape[0]), requires_grad=False)

    def forward(self) -> Tensor:
        """Tanh(E M^T + m), (p, n)."""
        return torch.tanh(functional.linear(self.table, self.inner, self.inner_bias))


class MadePrefix(nn.Module):
    """K_p and V_p of one layer from the shared trunk: ``outer`` O, ``outer_bias`` o."""

    def __init__(self, trunk: PrefixTrunk, outer: Tensor) -> None:
        super().__init__()
        self.trunk = trunk
        self.outer = nn.Parameter(outer, requires_grad=False)
        self.outer_bias = nn.Parameter(outer.new_zeros(outer.shape[0]), requires_grad=False)

    def rows(self) -> tuple[Tensor, Tensor]:
        """K_p and V_p, (p, w)."""
        key, value = functional.linear(self.trunk(), self.outer, self.outer_bias).chunk(2, dim=1)
        return key, value

    def before(self, host: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """The layer's keys and values with the prefix in front."""
        return with_keys(inputs, *(split_heads(rows[None], inputs) for rows in self.rows()))

    def after(self, host: nn.Module, inputs: AttentionInputs, mixed: Tensor) -> Tensor:
        """Nothing to add."""
        return mixed


def attach_p_tuning_v2(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft a prefix on every chosen layer; one block, layer by layer, keys before values."""
    settings = adapter.of(PTuningV2)
    if settings is None:
        return ()
    parts: list[PlainPrefix] = []
    for path, (attention, _, host) in anatomy.attentions("k", wanted_by="adapter.p_tuning_v2").items():
        shape, device = (settings.length, width_of(host, "out_features")), device_of(host)
        key, value = (drawn(seed, f"p_tuning_v2.{side}", path, shape, _DEVIATION, device) for side in ("key", "value"))
        parts.append(PlainPrefix(key, value))
        graft_attention(anatomy, attention, P_TUNING_V2, parts[-1])
    parameters = tuple(parameter for part in parts for parameter in (part.key, part.value))
    return (Block(block_id=BlockId(P_TUNING_V2), method=P_TUNING_V2, parameters=parameters),)


def attach_prefix(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft a prefix on every chosen layer; one block: the trunk, then layer by layer."""
    settings = adapter.of(Prefix)
    if settings is None:
        return ()
    hosts = anatomy.attentions("k", wanted_by="adapter.prefix")
    _, _, first = next(iter(hosts.values()))
    wide, device = width_of(first, "in_features"), device_of(first)
    trunk = PrefixTrunk(
        drawn(seed, "prefix.table", "", (settings.length, wide), 1.0, device),
        drawn(seed, "prefix.inner", "", (settings.width, wide), 1.0 / math.sqrt(wide), device),
    )
    parts: list[MadePrefix] = []
    for path, (attention, _, host) in hosts.items():
        shape = (2 * width_of(host, "out_features"), settings.width)
        parts.append(MadePrefix(trunk, drawn(seed, "prefix.outer", path, shape, _DEVIATION, device)))
        graft_attention(anatomy, attention, PREFIX, parts[-1])
    shared = (trunk.table, trunk.inner, trunk.inner_bias)
    own = tuple(parameter for part in parts for parameter in (part.outer, part.outer_bias))
    return (Block(block_id=BlockId(PREFIX), method=PREFIX, parameters=(*shared, *own)),)


def split_heads(rows: Tensor, inputs: AttentionInputs) -> Tensor:
    """(b or 1, p, k d) -> (b or 1, k, p, d) for the inputs's key heads."""
    return rows.view(*rows.shape[:2], inputs.key.shape[1], inputs.key.shape[3]).transpose(1, 2)
