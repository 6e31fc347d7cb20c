"""The changes of matrices in the format of peft: LORA, with and without DoRA's magnitudes; and back.

Every low-rank method is some B A in the end, so one LORA directory holds any of them, also several on one
matrix (their factors side by side). What is read back becomes plain LoRA of the same product.

Smaller factors are padded with zeros to the largest rank: the same product, and every reader scales it alike. peft has
``rank_pattern`` and ``alpha_pattern`` for unequal ranks, but llama.cpp scales by ``lora_alpha`` over a tensor's own
rank and vLLM by ``lora_alpha / r``; neither reads the patterns.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.blocks import LORA
from fedpeft.export.peft_experts import expert_factors, read_expert, target_parameters
from fedpeft.grafting.expert_views import expert_place
from fedpeft.grafting.graft import GRAFTS, grafts_of
from fedpeft.grafting.own_form import PREFIX, Arrays, Held, as_array
from fedpeft.grafting.rows import place_of, width_of
from fedpeft.methods.adalora import ADALORA, AdaLoraPart
from fedpeft.methods.dora import DoraPart
from fedpeft.methods.dylora import DYLORA, DyLoraPart
from fedpeft.methods.lora import LoraPart
from fedpeft.methods.qalora import QALORA, QaLoraPart
from fedpeft.methods.relora import RELORA, ReLoraPart

__all__ = [
    "LOW_RANK",
    "dora_form",
    "lora_form",
    "read_dora",
    "read_lora",
]

LOW_RANK: Mapping[str, type[nn.Module]] = MappingProxyType(
    {LORA: LoraPart, ADALORA: AdaLoraPart, DYLORA: DyLoraPart, RELORA: ReLoraPart, QALORA: QaLoraPart}
)
"""The methods whose change is a low-rank product, and their grafts: each has ``as_lora``."""


def lora_form(
    model: nn.Module, tensors: Arrays, otherwise: Mapping[str, tuple[Tensor, Tensor]], methods: Collection[str]
) -> dict[str, object]:
    """Write every low-rank change to ``tensors``; the settings that go with them.

    Args:
        otherwise: factors by path to write when the model has no low-rank part.
        methods: whose parts are written.
    """
    plain = grafts_of(model, LoraPart) if LORA in methods else {}
    others = [grafts_of(model, kind) for name, kind in LOW_RANK.items() if name in methods and name != LORA]
    if not any(others) and not any(place_of(model, path)[0] != path for path in plain):
        # the scale as configured, and equal ranks
        factors = {path: part.factors() for path, part in plain.items()} or dict(otherwise)
        scale = next((part.scale for part in plain.values()), 1.0)
    else:
        factors, scale = _together(model, methods), 1.0
    rank = max(down.shape[0] for down, _ in factors.values())
    factors = {
        path: (functional.pad(down, (0, 0, 0, rank - down.shape[0])), functional.pad(up, (0, rank - up.shape[1])))
        for path, (down, up) in factors.items()
    }
    modules = {path: pair for path, pair in factors.items() if expert_place(path) is None}
    for path, (down, up) in (modules | expert_factors(model, factors)).items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = as_array(down)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = as_array(up)
    settings = _lora_settings(sorted(modules), rank, scale)
    parameters = target_parameters(factors)
    return settings | {"target_parameters": parameters} if parameters else settings


def dora_form(model: nn.Module, tensors: Arrays) -> dict[str, object]:
    """Write DoRA's factors and magnitudes to ``tensors``; the settings that go with them."""
    parts = grafts_of(model, DoraPart)
    for path, part in parts.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = as_array(part.A)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = as_array(part.B)
        tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = as_array(part.magnitude())
    first = next(iter(parts.values()))
    return _lora_settings(sorted(parts), first.A.shape[0], first.scale) | {"use_dora": True}


def read_lora(model: nn.Module, held: Held, settings: Mapping[str, object]) -> None:
    """Replace the model's low-rank parts by plain LoRA with the factors of ``lora_form``; the model is a replica."""
    scale = float(str(settings["lora_alpha"])) / int(str(settings["r"]))
    paths = {path for kind in LOW_RANK.values() for path in grafts_of(model, kind)}
    for path in paths:
        if (found := read_expert(model, held, path, paths)) is None:
            real, rows = place_of(model, path)
            down, up = held[f"{real}.lora_A.weight"], held[f"{real}.lora_B.weight"]
            up = up if rows is None else up[rows]
        else:
            down, up = found
        part = LoraPart(down, up.shape[0], (down.shape[0],), scale)
        part.set_factors(down, up)
        grafts = model.get_submodule(f"{path}.{GRAFTS}")
        own = [name for name in LOW_RANK if name in grafts._modules]
        grafts._modules[own[0]] = part  # in its place: before biases and gains
        for name in own[1:]:
            del grafts._modules[name]


def read_dora(model: nn.Module, held: Held) -> None:
    """Set the model's DoRA parts to what ``dora_form`` wrote."""
    for path, part in grafts_of(model, DoraPart).items():
        part.A.copy_(held[f"{path}.lora_A.weight"])
        part.B.copy_(held[f"{path}.lora_B.weight"])
        part.delta.copy_(held[f"{path}.lora_magnitude_vector"] - part.get_buffer("squares").sqrt())


def _together(model: nn.Module, methods: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of all low-rank parts by path, those of one matrix side by side, scales in B."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for kind in (kind for name, kind in LOW_RANK.items() if name in methods):
        for path, part in grafts_of(model, kind).items():
            down, up = part.as_lora()  # type: ignore[operator]
            real, rows = place_of(model, path)
            if rows is not None:  # of a wider matrix: B is zero in the others
                wide = up.new_zeros(width_of(model.get_submodule(real), "out_features"), up.shape[1])
                up = wide.index_copy(0, rows.to(up.device), up)
            found.setdefault(real, []).append((down, up))
    return {
        path: (torch.cat([down for down, _ in factors]), torch.cat([up for _, up in factors], dim=1))
        for path, factors in found.items()
    }


def _lora_settings(targets: list[str], rank: int, scale: float) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(scale * rank),  # peft multiplies B A by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
    }


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
