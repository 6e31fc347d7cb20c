"""Parts that act inside attention: more keys and values, or a second attention beside the first.

transformers lets a model name its attention function in its configuration. A model with such parts names
ours, which gives every part of the module a say before and after the scaled dot product, and is otherwise
PyTorch's own. Invariant: a part reads only the module that it is handed, so replicas work on their own.

Shapes: b examples, h heads, k key heads (fewer with grouped queries), s tokens, t keys, d a head's width.
"""

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.graft import add_part

__all__ = [
    "AttentionInputs",
    "AttentionPart",
    "attend",
    "graft_attention",
    "parts_of",
    "use_own_attention",
    "with_keys",
]

_PARTS = "fedpeft_attention"
_NAME = "fedpeft"
# Numbers that models hand on and that change nothing here: dropout is 0, positions are turned or in the mask already,
# and what a Trainer says of its batch is for the loss.
_NO_CHANGE = frozenset(
    {
        "dropout",
        "position_ids",
        "cache_position",
        "token_type_ids",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "num_items_in_batch",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """What attention is about to mix.

    Args:
        query: (b, h, s, d).
        key, value: (b, k, t, d).
        mask: (b or 1, 1, s, t), True or 0 where a query sees a key; None: it sees all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


@runtime_checkable
class AttentionPart(Protocol):
    """What a graft on attention does; ``host`` is the attention module."""

    def before(self, host: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """Change what is mixed."""

    def after(self, host: nn.Module, inputs: AttentionInputs, mixed: Tensor) -> Tensor:
        """Change the mixture, (b, h, s, d); ``inputs`` is as this part's ``before`` was given it."""


def graft_attention(anatomy: Anatomy, path: str, method: str, part: nn.Module) -> None:
    """From now on ``part`` acts in the attention module at ``path``.

    Raises:
        ConfigInvalid: the model computes attention without asking its configuration how.
    """
    use_own_attention(anatomy)
    add_part(anatomy.model.get_submodule(path), _PARTS, method, part)


def use_own_attention(anatomy: Anatomy) -> None:
    """From now on the model computes attention with ``attend``, with boolean masks.

    Raises:
        ConfigInvalid: it does not ask its configuration how.
    """
    if not getattr(anatomy.model, "_supports_attention_backend", False):
        raise ConfigInvalid(
            f"Expected a model whose attention can be replaced, found {type(anatomy.model).__name__}; use lora, "
            "ia3 or bottleneck on this model instead."
        )
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention_function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)
    for module in anatomy.model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = _NAME


def parts_of(host: nn.Module) -> nn.ModuleDict | None:
    """The parts of one attention module by method; None when it has none."""
    return cast("nn.ModuleDict | None", getattr(host, _PARTS, None))


def attend(
    host: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Scaled dot product attention with the host's parts, (b, h, s, d).

    Args:
        softcap: scores are squeezed to below this size; None: they are not.
        sinks: (h,), a further score of each head that no value goes with; None: there is none.
    """
    found = parts_of(host)
    parts = [] if found is None else cast("list[AttentionPart]", list(found.values()))
    if mask is None and getattr(host, "is_causal", False) and query.shape[2] > 1:
        size = (query.shape[2], key.shape[2])
        mask = torch.ones(size, dtype=torch.bool, device=query.device).tril(key.shape[2] - query.shape[2])[None, None]
    inputs = AttentionInputs(query=query, key=key, value=value, mask=mask)
    seen = []
    for part in parts:
        seen.append(inputs)
        inputs = part.before(host, inputs)
    groups = inputs.query.shape[1] // inputs.key.shape[1]
    key, value = inputs.key, inputs.value
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = _mix(inputs, key, value, scaling, softcap, sinks)
    for part, given in zip(reversed(parts), reversed(seen), strict=True):
        mixed = part.after(host, given, mixed)
    return mixed


def with_keys(inputs: AttentionInputs, key: Tensor, value: Tensor) -> AttentionInputs:
    """The inputs with p more keys before its own, seen by every query; ``key``, ``value``: (b or 1, k, p, d)."""
    size, added = inputs.key.shape[0], key.shape[2]
    mask = inputs.mask
    if mask is not None:
        # A boolean mask lets through what is True, an additive one what is 0.
        seen = mask.new_full((*mask.shape[:-1], added), mask.dtype == torch.bool)
        mask = torch.cat((seen, mask), dim=-1)
    return AttentionInputs(
        query=inputs.query,
        key=torch.cat((key.to(inputs.key.dtype).expand(size, -1, -1, -1), inputs.key), dim=2),
        value=torch.cat((value.to(inputs.value.dtype).expand(size, -1, -1, -1), inputs.value), dim=2),
        mask=mask,
    )


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """What transformers calls: (b, s, h, d), and no weights.

    Raises:
        ConfigInvalid: the model hands its attention what is not computed here.
    """
    unknown = [name for name, value in others.items() if isinstance(value, Tensor | float) and name not in _NO_CHANGE]
    if unknown:
        raise ConfigInvalid(
            f"Expected attention of queries, keys, values and a mask, found {', '.join(unknown)} in "
            f"{type(module).__name__}; use a method that leaves attention as it is: lora, ia3, bottleneck."
        )
    mixed = attend(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, sinks=s_aux)
    return mixed.transpose(1, 2), None


def _mix(
    inputs: AttentionInputs, key: Tensor, value: Tensor, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Softmax of the scores times the values, (b, h, s, d)."""
    if softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(inputs.query, key, value, attn_mask=inputs.mask, scale=scaling)
    scores = inputs.query @ key.transpose(2, 3) * scaling  # (b, h, s, t)
    if softcap is not None:  # Gemma 2: no score is larger than this
        scores = softcap * torch.tanh(scores / softcap)
    if inputs.mask is not None:
        if inputs.mask.dtype == torch.bool:
            scores = scores.masked_fill(~inputs.mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + inputs.mask
    if sinks is None:
        return torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
    # gpt-oss: a score a head that takes its share and has no value.
    drained = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
    shares = torch.softmax(torch.cat((scores, drained), dim=-1).float(), dim=-1)
    return shares[..., :-1].to(value.dtype) @ value
