"""The matrices of a mixture's experts: one at a time, from a base that keeps them packed or not.

transformers holds the experts of a layer in two tensors of three dimensions, (experts, d_out, d_in) or (experts, d_in,
d_out), and multiplies by all of them in one kernel. Here each expert that has tokens is a product of its own, so that a
packed base unpacks one expert and no layer, and a method can sit on it (``fedpeft.grafting.expert_views``). Dense and
packed do the same arithmetic: logits are equal to the bit.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.base.quantize import dequantize_matrix
from fedpeft.base.residency import PackedLayer, PackedWeight, packed_linear

__all__ = ["PackedExperts", "expert_tensors", "experts_of", "matrix_of", "own_products", "plain_product"]


class ExpertWeight(PackedWeight):
    """One expert's matrix, (d_out, d_in), of the tensor that the artifact stores."""

    def __init__(self, stack: PackedWeight, index: int, *, turned: bool) -> None:
        super().__init__(stack.parts, stack.encoding, stack.shape)
        self._index, self._turned = index, turned

    def unpack(self) -> Tensor:
        """The float32 matrix, made anew."""
        matrix = dequantize_matrix(self.parts, self.encoding, self.shape, self._index)
        return matrix.t() if self._turned else matrix

    def unpack_for_now(self) -> Tensor:
        """See ``PackedWeight``; one expert's is small."""
        return self.unpack()


class PackedExperts(PackedLayer):
    """In the place of a parameter of three dimensions: its matrices, packed."""

    def __init__(self, packed: PackedWeight) -> None:
        nn.Module.__init__(self)
        self.packed = packed

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that it stands for."""
        return self.packed.shape


def experts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every set of experts that is computed here: those with transformers' own interface."""
    for path, module in model.named_modules():
        if hasattr(module, "has_gate") and hasattr(module, "_apply_gate") and hasattr(module, "num_experts"):
            yield path, module


def expert_tensors(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a set of experts' matrices by name, packed or not, in the module's order."""
    names = ("gate_up_proj",) if module.has_gate else ("up_proj",)
    return {name: tuple(cast("Tensor", getattr(module, name)).shape) for name in (*names, "down_proj")}


def own_products(model: nn.Module) -> None:
    """From now on the experts' products are made one expert at a time, in copies of the model as well.

    By the class: a method bound to the module would go on computing with the original in every copy.
    """
    for _, module in experts_of(model):
        if vars(type(module)).get("forward") is not _forward:
            module.__class__ = _with_own_products(type(module))  # type: ignore[arg-type] # classes are hashable


def plain_product(module: nn.Module, name: str, index: int, x: Tensor) -> Tensor:
    """(n, d_in) -> (n, d_out) by one expert of the base, without what is grafted on it."""
    held, turned = getattr(module, name), _turned(module)
    bias = getattr(module, f"{name}_bias")[index] if module.has_bias else None
    if isinstance(held, PackedExperts):
        return packed_linear(x, ExpertWeight(held.packed, index, turned=turned), bias)
    return functional.linear(x, held[index].t() if turned else held[index], bias)


def matrix_of(module: nn.Module, name: str, index: int) -> Tensor:
    """(d_out, d_in) of one expert; unpacked anew from a packed base."""
    held, turned = getattr(module, name), _turned(module)
    if isinstance(held, PackedExperts):
        return ExpertWeight(held.packed, index, turned=turned).unpack()
    matrix: Tensor = held[index]
    return matrix.t() if turned else matrix


@cache
def _with_own_products(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with our forward pass, under its own name: transformers and peft look classes up by it."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {"forward": _forward, **names})


def _turned(module: nn.Module) -> bool:
    return bool(module.is_transposed)


def _product(module: Any, name: str, index: int, x: Tensor) -> Tensor:
    views = getattr(module, "fedpeft_experts", None)
    if views is None or name not in views:
        return plain_product(module, name, index, x)
    return cast("Tensor", views[name][str(index)](x))


def _forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(n, d) -> (n, d): for each token the weighted sum over its chosen experts, as transformers' own loop."""
    result = torch.zeros_like(hidden_states)
    for index in range(module.num_experts):
        token, place = torch.where(top_k_index == index)
        if not len(token):
            continue
        inner = _product(module, "gate_up_proj" if module.has_gate else "up_proj", index, hidden_states[token])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        out = _product(module, "down_proj", index, inner)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        out = out * top_k_weights[token, place, None]
        result = result.index_add(0, token, out.to(result.dtype))
    return result
