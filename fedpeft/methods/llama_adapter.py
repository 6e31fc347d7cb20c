"""LLaMA-Adapter (Zhang et al. 2023): a second attention, to a trained prompt, behind a gate that begins at zero.

    mix(q, K, V) + g * softmax(q (W_k P)^T / sqrt(d)) (W_v P),    P (p, h), g (1,)

The prompt P of a layer goes through the layer's own key and value matrices; it has no position. With g = 0 the model
begins as the base (and P's gradient is zero in the first step). p h + 1 parameters per layer. The paper adapts the top
layers: ``adapter.layers``. The secure sum's mean is that of the parameters: g and P multiply.
"""

import torch
from torch import Tensor, nn

from fedpeft.catalogue.llama_adapter import LlamaAdapter
from fedpeft.config.model import Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.attention import AttentionInputs, graft_attention
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.lowrank import width_of
from fedpeft.ids import BlockId

__all__ = ["LLAMA_ADAPTER", "GatedPrompt", "attach_llama_adapter"]

LLAMA_ADAPTER = "llama_adapter"


class GatedPrompt(nn.Module):
    """One layer's ``prompt`` P, (p, h), and ``gate`` g, (1,).

    Args:
        prompt: P at the start.
        key, value: paths of the matrices in the attention module.
    """

    def __init__(self, prompt: Tensor, *, key: str, value: str) -> None:
        super().__init__()
        self.key, self.value = key, value
        self.prompt = nn.Parameter(prompt, requires_grad=False)
        self.gate = nn.Parameter(prompt.new_zeros(1), requires_grad=False)

    def before(self, host: nn.Module, inputs: AttentionInputs) -> AttentionInputs:
        """Nothing to change."""
        return inputs

    def after(self, host: nn.Module, inputs: AttentionInputs, mixed: Tensor) -> Tensor:
        """The mixture and the gated attention to the prompt."""
        # Once for each example, although all are alike: other methods sit on these matrices, and what they measure
        # example by example (DP-SGD's gradients, FISH's information) needs the examples in the first dimension.
        prompts = self.prompt.to(inputs.query.dtype).expand(len(inputs.query), -1, -1)
        key, value = (_heads(host.get_submodule(name)(prompts), inputs) for name in (self.key, self.value))
        scores = inputs.query @ key.transpose(2, 3) / inputs.query.shape[-1] ** 0.5  # (b, h, s, p)
        return mixed + (self.gate * (torch.softmax(scores.float(), dim=-1) @ value)).to(mixed.dtype)


def _heads(rows: Tensor, inputs: AttentionInputs) -> Tensor:
    """(b, p, k d) -> (b, h, p, d), each key head once for every query head that reads it."""
    groups, (kept, width) = inputs.query.shape[1] // inputs.key.shape[1], inputs.key.shape[1::2]
    return rows.view(*rows.shape[:2], kept, width).transpose(1, 2).repeat_interleave(groups, dim=1)


def attach_llama_adapter(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft a gated prompt on every chosen layer; one block, layer by layer, prompt before gate."""
    settings = adapter.of(LlamaAdapter)
    if settings is None:
        return ()
    keys, values = (anatomy.attentions(slot, wanted_by="adapter.llama_adapter") for slot in ("k", "v"))
    parts: list[GatedPrompt] = []
    for (path, (attention, key, host)), (_, value, _) in zip(keys.items(), values.values(), strict=True):
        shape = (settings.length, width_of(host, "in_features"))
        prompt = drawn(seed, "llama_adapter.prompt", path, shape, 1.0, device_of(host))
        parts.append(GatedPrompt(prompt, key=key, value=value))
        graft_attention(anatomy, attention, LLAMA_ADAPTER, parts[-1])
    parameters = tuple(parameter for part in parts for parameter in (part.prompt, part.gate))
    return (Block(block_id=BlockId(LLAMA_ADAPTER), method=LLAMA_ADAPTER, parameters=parameters),)
