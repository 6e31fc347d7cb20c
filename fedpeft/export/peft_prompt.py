"""Prompts and prefixes in the format of peft, and back. Does not import peft.

A directory holds prompts or prefixes only when the adapter is nothing else but the class head:

- ``PROMPT_TUNING``: prompt tuning and P-tuning (its encoder's result), for a language model or an encoder.
- ``PREFIX_TUNING``: prefix-tuning and P-tuning v2 on every layer of a decoder. peft moves the text's positions by the
  length of the prefix; with rotary positions that is undone by turning the prefix' keys forward as far. An encoder has
  absolute positions, where it cannot be undone: there the adapter stays in union.safetensors.
- ``ADAPTION_PROMPT``: LLaMA-Adapter on the top layers of a decoder, for a language model.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.catalogue.blocks import HEAD
from fedpeft.grafting.attention import parts_of
from fedpeft.grafting.graft import grafts_of
from fedpeft.grafting.own_form import Arrays, as_array
from fedpeft.methods.llama_adapter import LLAMA_ADAPTER, GatedPrompt
from fedpeft.methods.prefix import P_TUNING_V2, PREFIX, MadePrefix, PlainPrefix
from fedpeft.methods.prompt import P_TUNING, PROMPT, PlainPrompt, prompts_of
from fedpeft.methods.union import UnionAdapter

__all__ = ["PROMPT_TYPES", "prompt_form", "read_prompts"]

PROMPT_TYPES = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"})
_ROWS = "prompt_embeddings"
_BARE = "base_model."  # peft wraps nothing around the model of a prompt
_WRAPPED = "base_model.model."


def prompt_form(union: UnionAdapter) -> tuple[dict[str, object], Arrays] | None:
    """Settings and tensors of a directory that holds the whole adapter; None: peft has no form for it."""
    present = {block.method for block in union.spec.blocks} - {HEAD}
    anatomy = union.anatomy
    decoder = anatomy.causal
    sizes = {
        "num_layers": anatomy.layer_count,
        "num_transformer_submodules": 1,
        "num_attention_heads": int(getattr(union.model.config, "num_attention_heads", 1)),
    }
    if present and present <= {PROMPT, P_TUNING} and not (decoder and anatomy.head):
        rows = torch.cat([cast("PlainPrompt", part).made() for part in prompts_of(union.model).values()])  # (p, h)
        head = {f"{_BARE}{name}": values for name, values in _head(union).items()}
        length, width = rows.shape
        settings = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": length, "token_dim": width, **sizes}
        return settings, {_ROWS: as_array(rows), **head}
    if present and present <= {PREFIX, P_TUNING_V2} and decoder and not anatomy.head:
        layers = _prefixes(union)
        if not _can_turn(union.model):
            return None
        if len(layers) < anatomy.layer_count or len({len(key) for key, _ in layers}) > 1:
            return None
        length, width = layers[0][0].shape
        turned = [half for key, value in layers for half in (_turned(union.model, key, length), value)]
        heads = int(getattr(union.model.config, "num_key_value_heads", sizes["num_attention_heads"]))
        settings = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": length, "token_dim": width, **sizes}
        return settings | {"num_attention_heads": heads, "prefix_projection": False}, {
            _ROWS: as_array(torch.cat(turned, dim=1))
        }
    parts = grafts_of(union.model, GatedPrompt)
    attentions = _attentions(union)
    paths = [path for path, _ in attentions[len(attentions) - len(parts) :]]
    if present == {LLAMA_ADAPTER} and decoder and not anatomy.head and list(parts) == paths:
        tensors = {}
        for path, part in parts.items():
            tensors[f"{_WRAPPED}{path}.adaption_prompt"] = as_array(part.prompt[None])
            tensors[f"{_WRAPPED}{path}.adaption_gate"] = as_array(part.gate)
        length = len(next(iter(parts.values())).prompt)
        settings = {"peft_type": "ADAPTION_PROMPT", "adapter_len": length, "adapter_layers": len(parts)}
        return settings | {"target_modules": paths[0].removeprefix(f"{anatomy.layer_paths[-len(paths)]}.")}, tensors
    return None


@torch.no_grad()
def read_prompts(union: UnionAdapter, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Make ``union``, a replica, compute what the tensors of ``prompt_form`` say."""
    held = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    for path, gated in grafts_of(union.model, GatedPrompt).items():
        gated.prompt.copy_(held[f"{_WRAPPED}{path}.adaption_prompt"][0])
        gated.gate.copy_(held[f"{_WRAPPED}{path}.adaption_gate"])
    if (prompts := prompts_of(union.model)) is not None and len(prompts):
        prompts.clear()
        prompts[PROMPT] = PlainPrompt(held[_ROWS])
    halves = held[_ROWS].chunk(2 * union.anatomy.layer_count, dim=1) if _ROWS in held else ()
    for index, (_, host) in enumerate(_attentions(union)):
        if (parts := parts_of(host)) is not None and any(
            isinstance(p, PlainPrefix | MadePrefix) for p in parts.values()
        ):
            key, value = halves[2 * index], halves[2 * index + 1]
            parts.clear()
            parts[P_TUNING_V2] = PlainPrefix(_turned(union.model, key, -len(key)), value.clone())
    for name, parameter in _head_parameters(union).items():
        if f"{_BARE}{name}" in held:
            parameter.copy_(held[f"{_BARE}{name}"])


def _attentions(union: UnionAdapter) -> list[tuple[str, nn.Module]]:
    """The modules that hold keys, with their paths, layer by layer."""
    anatomy = union.anatomy
    paths = [
        f"{anatomy.layer_paths[index]}.{port.path}".rpartition(".")[0]
        for index in range(anatomy.layer_count)
        for port in anatomy.layout.select(index, "k")
    ]
    return [(path, union.model.get_submodule(path)) for path in dict.fromkeys(paths)]


@torch.no_grad()
def _prefixes(union: UnionAdapter) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer that has some, (p, w) each; several prefixes one after the other."""
    found = []
    for _, host in _attentions(union):
        parts = [p for p in (parts_of(host) or {}).values() if isinstance(p, PlainPrefix | MadePrefix)]
        if parts:
            keys, values = zip(*(part.rows() for part in parts), strict=True)
            found.append((torch.cat(keys), torch.cat(values)))
    return found


def _can_turn(model: nn.Module) -> bool:
    """Whether every layer turns keys by one table of angles that the length does not change, and sees all of a prefix.

    The direction of the turn (half and half, or interleaved) is not told here: the trial with peft shows it.
    """
    rotary, config = getattr(model.base_model, "rotary_emb", None), model.config
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    windows = {*(getattr(config, "layer_types", None) or ()), "full_attention"} != {"full_attention"}
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return hasattr(rotary, "inv_freq") and kind in ("default", "llama3") and not windows and not window


def _turned(model: nn.Module, rows: Tensor, by: int) -> Tensor:
    """Keys (p, w) turned as if they stood ``by`` positions further on; rotary positions, half and half."""
    rotary = cast("nn.Module", model.base_model.rotary_emb)  # type: ignore[union-attr]
    angles = by * cast("Tensor", rotary.inv_freq).float()  # (d / 2,)
    cos, sin = torch.cat((angles.cos(), angles.cos())), torch.cat((angles.sin(), angles.sin()))
    heads = rows.view(len(rows), -1, len(cos))
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos + torch.cat((-second, first), dim=-1) * sin).reshape(rows.shape)


def _head_parameters(union: UnionAdapter) -> dict[str, nn.Parameter]:
    return {name: union.model.get_parameter(name) for name in union.anatomy.head}


def _head(union: UnionAdapter) -> Arrays:
    return {name: as_array(parameter) for name, parameter in _head_parameters(union).items()}
