"""CoDA, conditional adapters (Lei et al. 2023): only the tokens that a router picks go through the layer.

    x_t + f(x_t) + m_t * (layer(x_picked)_t - x_t)  for a picked token,    x_t + f(x_t)  for the others
    f(x) = U act(D x + d) + u,    s_t = r . x_t

A layer attends among its picked tokens only (the paper's k-to-k form), so both attention and feed-forward cost the
capacity's share. The first token is always picked: a classifier reads it.

- An encoder picks the ceil(capacity n) highest of a text's n tokens; m is the paper's soft top-k of s (``soft_top_k``).
- A decoder may not look ahead: token t is picked when fewer than capacity (t + 1) of the tokens up to it score higher,
  and m_t = 2 sigmoid(s_t). The paper has no decoder; this rule is ours.

2 w m + m + w parameters for the bottleneck and w for the router a layer; U, u, d and r are zero at the start. With
capacity 1 the model begins as the base; with less it cannot. The secure sum's mean is that of the parameters.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpeft.catalogue.coda import Coda
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.attention import use_own_attention
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import add_part, device_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.narrow import check_width, narrow
from fedpeft.ids import BlockId

__all__ = ["CODA", "CodaPart", "attach_coda", "picks_tokens", "soft_top_k"]

CODA = "coda"
_PARTS = "fedpeft_layer"
_STEPS = 20  # of the soft top-k; the paper's


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picked:
    """What one forward pass picked: all tokens (b, s, w), places (b, k), weights (b, k, 1), 0 where a place is idle."""

    tokens: Tensor
    places: Tensor
    weights: Tensor


class CodaPart(nn.Module):
    """One layer's ``router`` r (w,) and bottleneck ``down``, ``down_bias``, ``up``, ``up_bias``."""

    def __init__(self, down: Tensor, settings: Coda, *, causal: bool) -> None:
        super().__init__()
        rows, wide = down.shape
        self.capacity, self.activation, self.causal = settings.capacity, settings.activation, causal
        self.router = nn.Parameter(down.new_zeros(wide), requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)
        self.down_bias = nn.Parameter(down.new_zeros(rows), requires_grad=False)
        self.up = nn.Parameter(down.new_zeros(wide, rows), requires_grad=False)
        self.up_bias = nn.Parameter(down.new_zeros(wide), requires_grad=False)
        self.picked: _Picked | None = None

    def pick(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens go through the layer, and m.

        Args:
            x: (b, s, w).
            real: (b, s), False at padding.

        Returns:
            Picked (b, s) and m (b, s), 0 where not picked.
        """
        scores = x.to(self.router.dtype) @ self.router  # (b, s)
        first = torch.zeros_like(real)
        first[:, 0] = True
        if self.causal:
            higher = (scores[:, None, :] > scores[:, :, None]) & real[:, None, :]  # (b, t, j): j scores above t
            rank = higher.tril().sum(dim=-1)  # among the tokens up to t
            budget = self.capacity * real.cumsum(dim=1)
            picked = (rank < budget) | first
            weights = 2.0 * torch.sigmoid(scores)
        else:
            counts = torch.ceil(self.capacity * real.sum(dim=1, keepdim=True))  # (b, 1)
            weights = soft_top_k(scores.masked_fill(~real, -math.inf), counts)
            order = scores.masked_fill(~real, -math.inf).masked_fill(first, math.inf)
            rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            picked = rank < counts
        picked &= real
        return picked, torch.where(picked, weights, torch.zeros_like(weights))

    def light(self, x: Tensor) -> Tensor:
        """X + f(x), for every token."""
        return x + narrow(x, self.down, self.up, self.activation, self.down_bias, self.up_bias).to(x.dtype)


def soft_top_k(scores: Tensor, counts: Tensor) -> Tensor:
    """The weights in [0, 1] that add up to ``counts`` and maximise sum(m s) + entropy(m) (the paper's appendix A).

    Args:
        scores: (b, s); -inf at padding.
        counts: (b, 1), at most the number of finite scores.

    Example:
        >>> soft_top_k(torch.tensor([[9.0, -9.0, 9.0]]), torch.tensor([[2.0]])).round(decimals=3)
        tensor([[1., 0., 1.]])
    """
    held = torch.zeros_like(scores)
    for _ in range(_STEPS):  # coordinate ascent on the dual: one multiplier for the sum, one for each bound m <= 1
        level = counts.log() - torch.logsumexp(scores + held, dim=1, keepdim=True)
        held = torch.clamp(-scores - level, max=0.0)
    everything = counts >= torch.isfinite(scores).sum(dim=1, keepdim=True)  # where the ascent has no end
    return torch.where(everything, torch.isfinite(scores).to(scores.dtype), torch.exp(scores + level + held))


def attach_coda(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Put a router and a light path around every chosen layer; one block, layer by layer: r, D, d, U, u.

    Raises:
        ConfigInvalid: the bottleneck is wider than the model, or its attention cannot be replaced.
    """
    settings = adapter.of(Coda)
    if settings is None:
        return ()
    use_own_attention(anatomy)
    parts: list[CodaPart] = []
    downs = dict(reversed(anatomy.ports("down", wanted_by="adapter.coda")))
    for index in sorted(downs):
        path, layer = anatomy.layer_paths[index], anatomy.layer(index)
        linear = layer.get_submodule(downs[index].path)
        wide = check_width(path, linear, settings.width, wanted_by="adapter.coda")
        shape, deviation = (settings.width, wide), 1.0 / math.sqrt(wide)
        down = drawn(seed, "coda.down", path, shape, deviation, device_of(layer))
        parts.append(CodaPart(down, settings, causal=anatomy.causal))
        if not hasattr(layer, _PARTS):
            layer.register_forward_pre_hook(_before, with_kwargs=True)
            layer.register_forward_hook(_after)
        add_part(layer, _PARTS, CODA, parts[-1])
    parameters = tuple(p for part in parts for p in (part.router, part.down, part.down_bias, part.up, part.up_bias))
    return (Block(block_id=BlockId(CODA), method=CODA, parameters=parameters),)


def picks_tokens(layer: nn.Module) -> bool:
    """Whether a layer computes for some tokens only, so that nobody else may choose its tokens."""
    return hasattr(layer, _PARTS)


def _part(layer: nn.Module) -> CodaPart:
    return cast("CodaPart", cast("nn.ModuleDict", getattr(layer, _PARTS))[CODA])


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand the layer its picked tokens, with their positions and what they may see."""
    part, x = _part(layer), args[0]
    named = dict(kwargs)
    mask = args[1] if len(args) > 1 else named.pop("attention_mask", None)
    size = x.shape[:2]
    real = x.new_ones(size, dtype=torch.bool) if mask is None else _diagonal(mask).expand(size)
    picked, weights = part.pick(x, real)
    width = int(picked.sum(dim=1).max())
    places = (~picked).to(torch.int8).argsort(dim=1, stable=True)[:, :width]  # the picked ones first, in their order
    kept = picked.gather(1, places)  # (b, k), False where an example picked fewer
    seen = kept[:, None, None, :].expand(-1, 1, width, -1)
    if part.causal:
        seen = seen & torch.ones(width, width, dtype=torch.bool, device=x.device).tril()
    if (angles := named.get("position_embeddings")) is not None:
        named["position_embeddings"] = tuple(_rows(angle.expand(size[0], -1, -1), places) for angle in angles)
    if (positions := named.get("position_ids")) is not None:
        named["position_ids"] = positions.expand(size).gather(1, places)
    part.picked = _Picked(tokens=x, places=places, weights=weights.gather(1, places)[..., None])
    return (_rows(x, places), seen, *args[2:]), named


def _after(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    """All tokens through the light path, the picked ones with what the layer changed."""
    part = _part(layer)
    state, part.picked = part.picked, None
    if state is None:
        return output
    change = state.weights.to(output.dtype) * (output - _rows(state.tokens, state.places))
    return part.light(state.tokens).scatter_add(1, state.places[..., None].expand_as(change), change)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """(b, s, w) at (b, k) -> (b, k, w)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _diagonal(mask: Tensor) -> Tensor:
    """(b, 1, s, s) -> (b, s): whether a token sees itself, which padding does not."""
    diagonal = mask.diagonal(dim1=-2, dim2=-1)[:, 0]
    return diagonal if diagonal.dtype == torch.bool else diagonal >= 0
