"""LoRA on experts in the format of peft: ``target_parameters``.

peft has one pair of factors for all experts of a tensor: A (E r, d_in), the experts one below the other, and B
(d_out, r E), the columns of one rank side by side, expert by expert. It reads from the class whether a stored matrix is
(d_in, d_out). Of two tensors in one module the later wraps the earlier, whose name gets ``base_layer``.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedpeft.base.experts import expert_tensors
from fedpeft.grafting.expert_views import ExpertPlace, expert_place
from fedpeft.grafting.own_form import Held

__all__ = ["expert_factors", "read_expert", "target_parameters"]

Factors = Mapping[str, tuple[Tensor, Tensor]]


def target_parameters(paths: Iterable[str]) -> list[str]:
    """The tensors whose experts have factors, by their whole names, sorted."""
    places = [place for path in paths if (place := expert_place(path)) is not None]
    return sorted({f"{place.experts}.{place.tensor}" for place in places})


def expert_factors(model: nn.Module, factors: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each tensor by the path that peft gives them.

    Args:
        model: that has the views.
        factors: of every expert's view by path: A (r, d_in), B (d_out, r), of one rank.
    """
    found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for path, pair in factors.items():
        if (place := expert_place(path)) is not None:
            found.setdefault(_name(place, factors, model), {})[place.number] = pair
    return {
        name: (
            torch.cat([experts[index][0] for index in range(len(experts))]),
            torch.stack([experts[index][1] for index in range(len(experts))], dim=2).flatten(1),
        )
        for name, experts in found.items()
    }


def read_expert(model: nn.Module, held: Held, path: str, paths: Iterable[str]) -> tuple[Tensor, Tensor] | None:
    """A (r, d_in) and B (d_out, r) of one expert's view; None: the path is no expert's."""
    if (place := expert_place(path)) is None:
        return None
    name = _name(place, paths, model)
    count = expert_tensors(model.get_submodule(place.experts))[place.tensor][0]
    down, up = held[f"{name}.lora_A.weight"], held[f"{name}.lora_B.weight"]
    rank = down.shape[0] // count
    return down.view(count, rank, -1)[place.number], up.view(-1, rank, count)[:, :, place.number].contiguous()


def _name(place: ExpertPlace, paths: Iterable[str], model: nn.Module) -> str:
    """``EXPERTS`` for the tensor that peft wraps last, ``EXPERTS.base_layer`` for the one before it."""
    present = set(target_parameters(paths))
    ordered = [one for one in expert_tensors(model.get_submodule(place.experts)) if f"{place.experts}.{one}" in present]
    return place.experts + ".base_layer" * (len(ordered) - 1 - ordered.index(place.tensor))
