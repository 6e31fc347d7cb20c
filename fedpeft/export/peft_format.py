"""A union adapter's blocks in the format of the peft library, and back. Does not import peft.

One PEFT directory holds one of these, exactly:

- ``LORA``: every low-rank change at its full rank (``peft_matrix``, of experts ``peft_experts``), biases
  (``bias="all"``) and the class head (``modules_to_save``). Without one in the union, one matrix gets a rank-1 LoRA of
  zeros, since peft has no form for biases or a head alone.
- ``LORA`` with ``use_dora``: DoRA, biases and the class head.
- the own form of a method (``VERA``, ``LOHA``, ``LOKR``: ``OWN_FORMS``) or ``IA3``, and the class head.
- ``LN_TUNING``: the tuned norms and the class head.
- ``PROMPT_TUNING``, ``PREFIX_TUNING`` or ``ADAPTION_PROMPT``: a prompt or prefix and nothing else (``peft_prompt``).

All but the last hold tuned norms as well, whole, in ``modules_to_save``. What a form cannot hold is left out;
the caller says so (``export``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

from fedpeft.base.architecture import form_of
from fedpeft.catalogue.blocks import HEAD, LORA
from fedpeft.errors import ConfigInvalid
from fedpeft.export.peft_matrix import (
    LOW_RANK,
    dora_form,
    lora_form,
    read_dora,
    read_lora,
)
from fedpeft.export.peft_prompt import PROMPT_TYPES, prompt_form, read_prompts
from fedpeft.export.peft_whole import put_whole, take_whole
from fedpeft.grafting.expert_views import expert_place
from fedpeft.grafting.graft import GRAFTS, grafts_of
from fedpeft.grafting.own_form import PREFIX, Arrays, as_array
from fedpeft.grafting.rows import is_turned, place_of, width_of
from fedpeft.methods.bitfit import BITFIT, BiasPart
from fedpeft.methods.dora import DORA
from fedpeft.methods.ia3 import IA3, InputGain, OutputGain
from fedpeft.methods.layernorm import LAYERNORM, NormPart
from fedpeft.methods.union import OWN_FORMS, UnionAdapter
from fedpeft.target_names import AUTO
from fedpeft.tasks.form import PEFT_TASK_TYPES

__all__ = ["PeftForm", "read_peft", "to_peft"]

_TUNED = "ln_tuning_layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftForm:
    """What one PEFT directory holds.

    Args:
        methods: methods of the union that it holds exactly.
        settings: for ``adapter_config.json``.
        tensors: for ``adapter_model.safetensors``.
        whole: paths of matrices that are written whole, since IA3 scales them (``peft_whole``).
    """

    methods: frozenset[str]
    settings: Mapping[str, object]
    tensors: Arrays
    whole: tuple[str, ...] = ()


def to_peft(union: UnionAdapter, *, whole_matrices: bool = False, without: Collection[str] = frozenset()) -> PeftForm:
    """The part of the union that one PEFT directory holds: low rank and biases, else DoRA, an own form or IA3.

    Args:
        union: the adapter.
        whole_matrices: IA3 beside low rank or biases is held as well, by writing the matrices that it scales whole.
        without: methods that peft was seen to compute otherwise on this model.
    """
    present = {block.method for block in union.spec.blocks}
    able = {method for method in present if method == HEAD or _can_be_held(union.model, method)} - {*without}
    head, task_type = union.anatomy.head, PEFT_TASK_TYPES[form_of(union.model)]
    if not without and (prompts := prompt_form(union)) is not None:
        settings, tensors = prompts
        kind = {"task_type": task_type, "inference_mode": True}
        return PeftForm(methods=frozenset(present), settings=kind | settings, tensors=tensors)
    # peft always takes a classifier's head from the adapter, so it is written even when no block trains it.
    tensors = {f"{PREFIX}{name}": as_array(parameter) for name, parameter in _head_parameters(union).items()}
    whole = head_modules(union.model, head)
    scaled: list[str] = []
    form = _form_of(able)
    if form == "LN_TUNING":
        held, settings = {LAYERNORM}, _norm_form(union, tensors)
    else:
        held, settings = _matrix_form(form, union, tensors, able)
        viewed = any(place_of(union.model, path)[0] != path for path in _gains(union.model))
        mixed = form == "LORA" and IA3 in present and not present & (LOW_RANK.keys() - {LORA})
        if whole_matrices and mixed and not viewed:
            scaled = put_whole(union.model, tensors, settings, _zero_lora(union))
            held, whole = {*held, IA3}, whole + scaled
        tensors |= {f"{PREFIX}{path}.{leaf}": values for (path, leaf), values in _tuned_norms(union).items()}
        whole += sorted(grafts_of(union.model, NormPart))
    common = {
        "task_type": task_type,
        "inference_mode": True,
        "modules_to_save": whole or None,
    }
    if form in ("LORA", "DORA", "IA3", "VERA") and union.anatomy.layout.layers[0].transposed:
        common["fan_in_fan_out"] = True
    return PeftForm(
        methods=frozenset((held | {HEAD}) & able),
        settings=common | settings,
        tensors=tensors,
        whole=tuple(scaled),
    )


def read_peft(union: UnionAdapter, form: PeftForm, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set ``union``, a replica, to what the tensors of ``to_peft`` say; parts that they lack become the identity."""
    if form.settings["peft_type"] in PROMPT_TYPES:
        read_prompts(union, tensors)
        return
    start = union.initial_state()
    lacking = {block.block_id: start[block.block_id] for block in start.spec.blocks if block.method not in form.methods}
    union.load(union.state().replace({block_id: v for block_id, v in lacking.items() if block_id != HEAD}))
    held = {name.removeprefix(PREFIX): torch.from_numpy(values.copy()) for name, values in tensors.items()}
    with torch.no_grad():
        if form.whole:
            take_whole(union.model, held)
        if form.methods & LOW_RANK.keys():
            read_lora(union.model, held, form.settings)
        if DORA in form.methods:
            read_dora(union.model, held)
        for method in form.methods & OWN_FORMS.keys():
            OWN_FORMS[method].read(union.model, held)
        for path, bias in grafts_of(union.model, BiasPart).items():
            value = held.get(f"{path}.base_layer.bias", held.get(f"{path}.bias"))
            if value is not None:
                bias.delta.copy_(value - union.model.get_parameter(f"{path}.bias"))
        for path, gain in _gains(union.model).items():
            real, rows = place_of(union.model, path)
            value = held.get(f"{real}.ia3_l")
            if value is not None:
                gain.delta.copy_((value.view(-1) if rows is None else value.view(-1)[rows]) - 1.0)
        _read_norms(union.model, held)
        for name, parameter in _head_parameters(union).items():
            parameter.copy_(held[name])


def _read_norms(model: nn.Module, held: Mapping[str, Tensor]) -> None:
    for path, norm in grafts_of(model, NormPart).items():
        for leaf, delta in (("weight", norm.gain), ("bias", norm.bias)):
            value = held.get(f"{path}.{_TUNED}.{leaf}", held.get(f"{path}.{leaf}"))
            if delta is not None and value is not None:
                delta.copy_(value - model.get_parameter(f"{path}.{leaf}"))


def _taken_for_experts(model: nn.Module, path: str) -> bool:
    """Whether peft would take this module for the experts that such a model once had under its name, and lose it."""
    leaf, others = path.rpartition(".")[2], {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    once = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
    converted = str(getattr(model.config, "model_type", "")) in _MODEL_TO_CONVERSION_PATTERN
    return converted and once.get(leaf) in others


def _can_be_held(model: nn.Module, method: str) -> bool:
    """Whether peft's form of a method takes every matrix that it sits on: not some rows of one, nor, often, Conv1D."""
    hosts = [path for path, part in model.named_modules() if path.endswith(f".{GRAFTS}.{method}") and part is not None]
    places = [place_of(model, path.rpartition(f".{GRAFTS}")[0]) for path in hosts]
    if method in {DORA, *LOW_RANK} and any(_taken_for_experts(model, path) for path, _ in places):
        return False
    if any(expert_place(path) is not None for path, _ in places):
        return method in LOW_RANK
    if method not in {DORA, *OWN_FORMS}:
        return True
    on_turned = method not in OWN_FORMS or OWN_FORMS[method].on_turned
    return all(rows is None and (on_turned or not is_turned(model.get_submodule(path))) for path, rows in places)


def _form_of(present: set[str]) -> str:
    """Which of peft's forms holds most of these methods; a method's own form goes by the method's name."""
    if present & LOW_RANK.keys():
        return "LORA"
    if DORA in present:
        return "DORA"
    if BITFIT not in present:
        own = [method for method in OWN_FORMS if method in present]
        others = [form for method, form in ((IA3, "IA3"), (LAYERNORM, "LN_TUNING")) if method in present]
        return (own + others + ["LORA"])[0]
    return "LORA"


def _matrix_form(
    form: str, union: UnionAdapter, tensors: Arrays, able: Collection[str]
) -> tuple[set[str], dict[str, object]]:
    """The methods that a form holds, of those that it can, its settings, and its tensors added to ``tensors``."""
    if form == "IA3":
        return {IA3, LAYERNORM}, _ia3_form(union, tensors)
    if form in OWN_FORMS:
        own = OWN_FORMS[form]
        return {form, LAYERNORM}, {"peft_type": own.peft_type} | own.write(union.model, tensors)
    if form == "DORA":
        held, settings = {DORA, BITFIT, LAYERNORM}, dora_form(union.model, tensors)
    else:
        held, settings = {*LOW_RANK, BITFIT, LAYERNORM}, lora_form(union.model, tensors, _zero_lora(union), able)
    biases = grafts_of(union.model, BiasPart)
    targets = {name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name}
    for path, part in biases.items():
        name = f"{path}.base_layer.bias" if path in targets else f"{path}.bias"
        tensors[f"{PREFIX}{name}"] = as_array(union.model.get_parameter(f"{path}.bias") + part.delta)
    return held, settings | {"bias": "all" if biases else "none"}


def _ia3_form(union: UnionAdapter, tensors: Arrays) -> dict[str, object]:
    gains: dict[str, Tensor] = {}
    inner = sorted(path for path, gain in _gains(union.model).items() if isinstance(gain, InputGain))
    for path, gain in _gains(union.model).items():
        real, rows = place_of(union.model, path)
        if rows is None:
            gains[real] = 1.0 + gain.delta
            continue
        every = gains.setdefault(real, torch.ones(width_of(union.model.get_submodule(real), "out_features")))
        every[rows] = 1.0 + gain.delta.detach().cpu()
    for path, factor in gains.items():
        tensors[f"{PREFIX}{path}.ia3_l"] = as_array(factor.view((1, -1) if path in inner else (-1, 1)))
    return {"peft_type": "IA3", "target_modules": sorted(gains), "feedforward_modules": inner}


def _norm_form(union: UnionAdapter, tensors: Arrays) -> dict[str, object]:
    norms = _tuned_norms(union)
    for (path, leaf), values in norms.items():
        tensors[f"{PREFIX}{path}.{_TUNED}.{leaf}"] = values
    return {"peft_type": "LN_TUNING", "target_modules": sorted({path for path, _ in norms})}


def _tuned_norms(union: UnionAdapter) -> dict[tuple[str, str], npt.NDArray[np.float32]]:
    """Gain and bias of every tuned norm as trained, by path and ``weight`` or ``bias``, whoever trained the bias."""
    biases = grafts_of(union.model, BiasPart)
    tuned: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    for path, norm in grafts_of(union.model, NormPart).items():
        host = union.model.get_submodule(path)
        tuned[path, "weight"] = as_array(host.get_parameter("weight") + norm.gain)
        delta = biases[path].delta if path in biases else norm.bias
        if delta is not None:
            tuned[path, "bias"] = as_array(host.get_parameter("bias") + delta)
    return tuned


def _gains(model: nn.Module) -> dict[str, InputGain | OutputGain]:
    return {**grafts_of(model, OutputGain), **grafts_of(model, InputGain)}


def _zero_lora(union: UnionAdapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors that change nothing, of the last layer that has what LoRA usually sits on."""
    anatomy = union.anatomy
    for index in reversed(range(anatomy.layer_count)):
        for port in anatomy.layout.select(index, AUTO):
            path = f"{anatomy.layer_paths[index]}.{port.path}"
            host = union.model.get_submodule(path)
            return {
                path: (torch.zeros(1, width_of(host, "in_features")), torch.zeros(width_of(host, "out_features"), 1))
            }
    raise ConfigInvalid("Expected a linear module in some layer, found none.")


def _head_parameters(union: UnionAdapter) -> dict[str, nn.Parameter]:
    return {name: union.model.get_parameter(name) for name in union.anatomy.head}


def head_modules(model: nn.Module, head: Sequence[str]) -> list[str]:
    """The modules that hold these parameters and no others, the largest ones: peft saves modules, not parameters."""
    found: dict[str, None] = {}
    for name in head:
        path = parts = name.rpartition(".")[0]
        while (parts := parts.rpartition(".")[0]) and _all_in(model.get_submodule(parts), parts, head):
            path = parts
        found[path] = None
    return list(found)


def _all_in(module: nn.Module, path: str, names: Sequence[str]) -> bool:
    return all(f"{path}.{name}" in names for name, _ in module.named_parameters())
