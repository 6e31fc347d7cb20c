"""IA3 beside LoRA in one PEFT directory: the matrices that a gain scales are written whole, as merging would have them.

(1 + g) * ((W + s B A) x + b) is a linear map of x, so one matrix and one bias hold it exactly, with what LoRA and
BitFit added there; diag(g) W has full rank, so no LoRA does. The price is d_out d_in values per matrix, which is why it
is asked for (``whole_matrices``) and not the rule. peft takes such modules from ``modules_to_save``.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fedpeft.grafting.graft import grafts_of
from fedpeft.grafting.own_form import PREFIX, Arrays, as_array
from fedpeft.methods.bitfit import BiasPart
from fedpeft.methods.ia3 import InputGain, OutputGain
from fedpeft.methods.lora import LoraPart

__all__ = ["put_whole", "take_whole"]


@torch.no_grad()
def _whole(model: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Every matrix that a gain scales, by path: the weight (d_out, d_in) and bias that compute the same alone."""
    loras, biases = grafts_of(model, LoraPart), grafts_of(model, BiasPart)
    outputs, inputs = grafts_of(model, OutputGain), _input_gains(model)
    found = {}
    for path in sorted({*outputs, *inputs}):
        host = model.get_submodule(path)
        weight = cast("Tensor", host.weight).float()
        bias = cast("Tensor | None", host.bias)
        if path in loras:
            down, up = loras[path].as_lora()
            weight = weight + up @ down
        if bias is not None and path in biases:  # only what has a bias has a delta
            bias = bias + biases[path].delta
        if path in inputs:  # LoRA reads the scaled input too
            weight = weight * (1.0 + inputs[path].delta)
        if path in outputs:
            gain = 1.0 + outputs[path].delta
            weight, bias = weight * gain[:, None], None if bias is None else bias * gain
        found[path] = (weight.clone(), None if bias is None else bias.detach().clone())
    return found


def put_whole(
    model: nn.Module, tensors: Arrays, settings: dict[str, object], otherwise: Mapping[str, tuple[Tensor, Tensor]]
) -> list[str]:
    """Replace what a LORA directory has of the scaled matrices by the matrices; their paths.

    Args:
        model: with its adapter.
        tensors: of ``lora_form`` with the biases; changed in place.
        settings: likewise.
        otherwise: rank-one factors by path that change nothing, to write when no target is left.
    """
    matrices = _whole(model)
    for path, (weight, bias) in matrices.items():
        for name in [name for name in tensors if name.startswith(f"{PREFIX}{path}.")]:
            del tensors[name]
        tensors[f"{PREFIX}{path}.weight"] = as_array(weight)
        if bias is not None:
            tensors[f"{PREFIX}{path}.bias"] = as_array(bias)
    left = {path for path in settings["target_modules"] if path not in matrices}  # type: ignore[attr-defined]
    if not left:  # peft refuses a directory without a target
        rank = int(str(settings["r"]))
        for path, (down, up) in otherwise.items():
            tensors[f"{PREFIX}{path}.lora_A.weight"] = as_array(down.repeat(rank, 1))
            tensors[f"{PREFIX}{path}.lora_B.weight"] = as_array(up.repeat(1, rank))
    settings["target_modules"] = sorted(left or otherwise)
    return list(matrices)


def take_whole(model: nn.Module, held: dict[str, Tensor]) -> None:
    """Put the matrices of ``put_whole`` into a replica, in place of what they stand for."""
    for path in {*grafts_of(model, OutputGain), *_input_gains(model)}:
        weight, bias = held[f"{path}.weight"], held.get(f"{path}.bias")
        alone = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        alone.weight.copy_(weight)
        if bias is not None:
            alone.bias.copy_(bias)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, alone)


def _input_gains(model: nn.Module) -> dict[str, InputGain]:
    return grafts_of(model, InputGain)
