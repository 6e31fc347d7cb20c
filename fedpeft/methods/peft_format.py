"""A union adapter's blocks in the format of the peft library, and back. Does not import peft.

One PEFT directory holds one of three things, exactly:

- ``LORA``: the LoRA matrices at the union's full rank, biases (``bias="all"``) and the class head
  (``modules_to_save``). Without LoRA in the union, one matrix gets a rank-1 LoRA of zeros, since peft has
  no form for biases or a head alone.
- ``IA3``: the gains and the class head.
- ``LN_TUNING``: the tuned norms and the class head.

The first two hold tuned norms as well, whole, in ``modules_to_save``. peft has no form for bottlenecks. What
a form cannot hold is left out; the caller says so (``export``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.methods.bitfit import BITFIT, BiasPart
from fedpeft.methods.blocks import HEAD, LORA
from fedpeft.methods.bottleneck import BottleneckPart
from fedpeft.methods.graft import grafts_of
from fedpeft.methods.ia3 import IA3, InputGain, OutputGain
from fedpeft.methods.layernorm import LAYERNORM, NormPart
from fedpeft.methods.lora import LoraPart
from fedpeft.methods.union import UnionAdapter

__all__ = ["PeftForm", "read_peft", "to_peft"]

Arrays = dict[str, npt.NDArray[np.float32]]
_PREFIX = "base_model.model."
_TUNED = "ln_tuning_layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftForm:
    """What one PEFT directory holds.

    Args:
        methods: methods of the union that it holds exactly.
        settings: for ``adapter_config.json``.
        tensors: for ``adapter_model.safetensors``.
    """

    methods: frozenset[str]
    settings: Mapping[str, object]
    tensors: Arrays


def to_peft(union: UnionAdapter) -> PeftForm:
    """The largest part of the union that one PEFT directory holds: LoRA and biases, else IA3; norms and head."""
    present = {block.method for block in union.spec.blocks}
    head = union.anatomy.head
    # peft always takes a classifier's head from the adapter, so it is written even when no block trains it.
    tensors = {f"{_PREFIX}{name}": _array(parameter) for name, parameter in _head_parameters(union).items()}
    whole = [head] if head else []
    if LAYERNORM in present and not present & {LORA, BITFIT, IA3}:
        held, settings = {LAYERNORM}, _norm_form(union, tensors)
    else:
        on_ia3 = IA3 in present and not present & {LORA, BITFIT}
        held = {IA3, LAYERNORM} if on_ia3 else {LORA, BITFIT, LAYERNORM}
        settings = _ia3_form(union, tensors) if on_ia3 else _lora_form(union, tensors)
        tensors |= {f"{_PREFIX}{path}.{leaf}": values for (path, leaf), values in _tuned_norms(union).items()}
        whole += sorted(grafts_of(union.model, NormPart))
    common = {
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "inference_mode": True,
        "modules_to_save": whole or None,
    }
    return PeftForm(methods=frozenset((held | {HEAD}) & present), settings=common | settings, tensors=tensors)


def read_peft(union: UnionAdapter, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Set ``union`` to what the tensors of ``to_peft`` say; parts that they lack become the identity."""
    held = {name.removeprefix(_PREFIX): torch.from_numpy(values.copy()) for name, values in tensors.items()}
    matrices = grafts_of(union.model, LoraPart)
    with torch.no_grad():
        for path, part in matrices.items():
            part.set_factors(held[f"{path}.lora_A.weight"], held[f"{path}.lora_B.weight"])
        for path, bias in grafts_of(union.model, BiasPart).items():
            base = union.model.get_parameter(f"{path}.bias")
            value = held.get(f"{path}.base_layer.bias", held.get(f"{path}.bias"))
            bias.delta.copy_(torch.zeros_like(base) if value is None else value - base)
        for path, gain in _gains(union.model).items():
            value = held.get(f"{path}.ia3_l")
            gain.delta.copy_(torch.zeros_like(gain.delta) if value is None else value.view(-1) - 1.0)
        for bottleneck in grafts_of(union.model, BottleneckPart).values():
            bottleneck.up.zero_()
            bottleneck.up_bias.zero_()
        for path, norm in grafts_of(union.model, NormPart).items():
            for leaf, delta in (("weight", norm.gain), ("bias", norm.bias)):
                value = held.get(f"{path}.{_TUNED}.{leaf}", held.get(f"{path}.{leaf}"))
                if delta is not None and value is not None:
                    delta.copy_(value - union.model.get_parameter(f"{path}.{leaf}"))
        for name, parameter in _head_parameters(union).items():
            parameter.copy_(held[name])


def _lora_form(union: UnionAdapter, tensors: Arrays) -> dict[str, object]:
    matrices = grafts_of(union.model, LoraPart)
    biases = grafts_of(union.model, BiasPart)
    targets = {path: part.factors() for path, part in matrices.items()} or _zero_lora(union)
    for path, (down, up) in targets.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = _array(down)
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = _array(up)
    for path, part in biases.items():
        name = f"{path}.base_layer.bias" if path in targets else f"{path}.bias"
        tensors[f"{_PREFIX}{name}"] = _array(union.model.get_parameter(f"{path}.bias") + part.delta)
    rank = next(iter(targets.values()))[0].shape[0]
    scale = next((part.scale for part in matrices.values()), 1.0)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(scale * rank),  # peft multiplies B A by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "target_modules": sorted(targets),
    }


def _ia3_form(union: UnionAdapter, tensors: Arrays) -> dict[str, object]:
    gains = _gains(union.model)
    inner = [path for path, gain in gains.items() if isinstance(gain, InputGain)]
    for path, gain in gains.items():
        shape = (1, -1) if path in inner else (-1, 1)
        tensors[f"{_PREFIX}{path}.ia3_l"] = _array((1.0 + gain.delta).view(shape))
    return {"peft_type": "IA3", "target_modules": sorted(gains), "feedforward_modules": sorted(inner)}


def _norm_form(union: UnionAdapter, tensors: Arrays) -> dict[str, object]:
    norms = _tuned_norms(union)
    for (path, leaf), values in norms.items():
        tensors[f"{_PREFIX}{path}.{_TUNED}.{leaf}"] = values
    return {"peft_type": "LN_TUNING", "target_modules": sorted({path for path, _ in norms})}


def _tuned_norms(union: UnionAdapter) -> dict[tuple[str, str], npt.NDArray[np.float32]]:
    """Gain and bias of every tuned norm as trained, by path and ``weight`` or ``bias``, whoever trained the bias."""
    biases = grafts_of(union.model, BiasPart)
    tuned: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    for path, norm in grafts_of(union.model, NormPart).items():
        host = union.model.get_submodule(path)
        tuned[path, "weight"] = _array(host.get_parameter("weight") + norm.gain)
        delta = biases[path].delta if path in biases else norm.bias
        if delta is not None:
            tuned[path, "bias"] = _array(host.get_parameter("bias") + delta)
    return tuned


def _gains(model: nn.Module) -> dict[str, InputGain | OutputGain]:
    return {**grafts_of(model, OutputGain), **grafts_of(model, InputGain)}


def _zero_lora(union: UnionAdapter) -> dict[str, tuple[Tensor, Tensor]]:
    path = f"{union.anatomy.layers_path}.{union.anatomy.layer_count - 1}.{union.anatomy.slots['q']}"
    host = union.model.get_submodule(path)
    return {path: (torch.zeros(1, int(host.in_features)), torch.zeros(int(host.out_features), 1))}  # type: ignore[arg-type]


def _head_parameters(union: UnionAdapter) -> dict[str, nn.Parameter]:
    head = union.anatomy.head
    if head is None:
        return {}
    return {f"{head}.{name}": parameter for name, parameter in union.model.get_submodule(head).named_parameters()}


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
