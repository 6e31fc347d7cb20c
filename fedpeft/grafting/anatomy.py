"""Where a transformer keeps its parts: the layers, and in each layer the matrices that methods attach to.

By the records of ``fedpeft.families``: a model is of the family whose ports all its layers have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.families import FAMILIES, family_named

__all__ = ["Anatomy", "dissect"]

_CLASS_HEADS = tuple(path for family in FAMILIES for path in family.class_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The parts of one model.

    Args:
        model: the model itself.
        family: its name in ``fedpeft.families``.
        layers_path: the path of the list of layers, e.g. ``bert.encoder.layer``.
        layer_count: how many layers there are.
        first_layer: the lowest layer that may carry adapters; ``layer_count`` when none does.
        stop_layer: the layer after the last one that may.
        slots: the model's own path inside a layer by short name.
        head: the path of the class head; None for a language model.
    """

    model: nn.Module
    family: str
    layers_path: str
    layer_count: int
    first_layer: int
    stop_layer: int
    slots: Mapping[str, str]
    head: str | None

    def layer(self, index: int) -> nn.Module:
        """One layer, counted from the input."""
        return self.model.get_submodule(f"{self.layers_path}.{index}")

    def chosen_layers(self) -> dict[str, nn.Module]:
        """The layers that carry adapters, by path, from the input up."""
        return {f"{self.layers_path}.{i}": self.layer(i) for i in range(self.first_layer, self.stop_layer)}

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return family_named(self.family).causal

    @property
    def attention(self) -> str:
        """The path, inside a layer, of the module that mixes tokens."""
        return self.slots["q"].rpartition(".")[0]

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: what turns token ids into hidden states."""
        return cast("nn.Module", self.model.base_model)

    def within(self, layers: tuple[int, int] | None, *, wanted_by: str) -> "Anatomy":
        """The same model with adapters from the first to the last of ``layers`` only; None: unchanged.

        Raises:
            ConfigInvalid: no such layers.
        """
        if layers is None:
            return self
        first, last = layers
        if not 0 <= first <= last < self.layer_count:
            problem = Problem(
                where=f"{wanted_by}.layers",
                expected=f"[first, last] within 0..{self.layer_count - 1}",
                found=str(list(layers)),
            )
            raise ConfigInvalid("This model has no such layers.", problems=[problem])
        return replace(self, first_layer=first, stop_layer=last + 1)

    def slot_modules(self, slot: str, *, wanted_by: str) -> dict[str, nn.Module]:
        """The modules of one slot in the chosen layers, by path.

        Raises:
            ConfigInvalid: this family has no such slot; the choices are listed.
        """
        if slot not in self.slots:
            raise ConfigInvalid(
                f"{wanted_by}: this model has no such matrix.",
                problems=[
                    Problem(
                        where=f"{wanted_by}: target {slot!r}",
                        expected=f"one of {', '.join(self.slots)} (a {self.family} model)",
                        found=slot,
                        remedy=f"Take {slot!r} out of the targets.",
                    )
                ],
            )
        path = self.slots[slot]
        if not family_named(self.family).ports[slot].is_plain:
            raise ConfigInvalid(
                f"{wanted_by}: expected a matrix of its own for {slot!r}, found a part of {path}; take it out of the "
                "targets."
            )
        return {f"{name}.{path}": layer.get_submodule(path) for name, layer in self.chosen_layers().items()}


def dissect(model: nn.Module, layers: int | str) -> Anatomy:
    """Find the parts of ``model``.

    Args:
        model: a Hugging Face transformer with a task head.
        layers: ``all``, or how many of the top layers carry adapters.

    Raises:
        ConfigInvalid: neither family fits, or the model has fewer layers than asked for.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        for family in FAMILIES:
            if all(_has(layer, port.path) for layer in module for port in family.ports.values()):
                return Anatomy(
                    model=model,
                    family=family.name,
                    layers_path=path,
                    layer_count=len(module),
                    first_layer=_first_layer(len(module), layers),
                    stop_layer=len(module),
                    slots={slot: port.path for slot, port in family.ports.items()},
                    head=next((name for name in _CLASS_HEADS if _has(model, name)), None),
                )
    families = " or ".join(family.name for family in FAMILIES)
    raise ConfigInvalid(
        f"Expected a {families} model, found {type(model).__name__} without such layers; choose another base model."
    )


def _has(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def _first_layer(count: int, layers: int | str) -> int:
    if layers == "all":
        return 0
    if not isinstance(layers, int) or not 0 <= layers <= count:
        problem = Problem(where="adapter.layers", expected=f'"all" or 0..{count}', found=repr(layers))
        raise ConfigInvalid("Too many layers asked for.", problems=[problem])
    return count - layers
