"""The gradient of each example on its own, for DP-SGD (Abadi et al. 2016): our own hooks, and the definition.

- ``Hooked``: one forward and one backward pass for the whole batch. Every module that owns trained parameters keeps
  what it needs in the forward pass, and turns the gradient of its output into one gradient per example. Closed forms
  for linear layers, LoRA's B, biases, gains and norms (Goodfellow 2015; what Opacus does for the layers it knows);
  for any other module ``vmap`` of its vector-Jacobian product, example by example, the base left out.
- ``micro_gradients``: the definition: one example at a time. Exact for whatever autograd can differentiate.

The hooks assume that the first dimension of a module's inputs and output counts examples, and that a parameter is
used by its module alone. ``fedpeft.tuning.per_example_gradients`` compares both back ends before it believes them. The
parameters themselves require no gradient under the hooks, so their summed gradient is not computed as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional

from fedpeft.errors import RunFailed
from fedpeft.grafting.tiers import Columns, Rows
from fedpeft.methods.bitfit import BiasPart
from fedpeft.methods.ia3 import InputGain, OutputGain
from fedpeft.methods.layernorm import NormPart

__all__ = ["RULES", "Hooked", "NoBackEnd", "PerExample", "any_module", "micro_gradients", "owner_paths"]

Gradients = dict[str, Tensor]
"""By the parameter's name within its module, (b, *shape)."""

Finish = Callable[[Tensor], Gradients]
"""From the gradient of a module's output, (b, ..., d)."""

Rule = Callable[[nn.Module, tuple[Tensor, ...], frozenset[str]], Finish]
"""From a module, its inputs and the names of its trained parameters; keeps no more of the inputs than it needs."""

_CONTAINERS = (nn.ParameterDict, nn.ParameterList, nn.ModuleDict, nn.ModuleList)


class _Bare(nn.Module):
    """A module without the hooks on it: ours and Opacus's would take this pass for one of the model's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the inner module's."""
        result: Tensor = self.inner.forward(*inputs)
        return result


class NoBackEnd(RunFailed):
    """The hooks cannot give the gradient of each example for these parameters."""


class PerExample(Protocol):
    """One pass for all examples of a batch: ``Hooked``, or ``fedpeft.tuning.opacus.hooks.OpacusHooked``."""

    def listening(self) -> AbstractContextManager[None]:
        """Within it, a forward pass and ``backward`` leave the gradients for ``take``."""

    def backward(self, loss: Tensor) -> None:
        """From the sum of the examples' losses."""

    def take(self, examples: int) -> list[Tensor]:
        """The gradients of the last backward pass, each (b, *shape)."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """A module that is called, with its trained parameters by their names within it and their places in all."""

    module: nn.Module
    places: Mapping[str, int]


class Hooked:
    """One pass for all examples of a batch.

    Args:
        model: the whole model, whose modules are called in the forward pass.
        trained: the parameters by name, in the order of the result.

    Raises:
        NoBackEnd: a parameter does not belong to the model.
    """

    def __init__(self, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
        self._trained = list(trained.values())
        self._owners = _owners(model, trained)
        self._found: dict[int, Tensor] = {}
        self._busy = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, a forward and a backward pass leave the gradients for ``take``."""
        before = [parameter.requires_grad for parameter in self._trained]
        handles = [owner.module.register_forward_hook(self._forward(owner), with_kwargs=True) for owner in self._owners]
        try:
            for parameter in self._trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, required in zip(self._trained, before, strict=True):
                parameter.requires_grad_(required)
            self._found.clear()

    def backward(self, loss: Tensor) -> None:
        """One backward pass."""
        torch.autograd.backward([loss])

    def take(self, examples: int) -> list[Tensor]:
        """The gradients of the last backward pass, each (b, *shape).

        Raises:
            NoBackEnd: a parameter had no part in the loss, or the examples are not in the first dimension.
        """
        found, self._found = self._found, {}
        for place, parameter in enumerate(self._trained):
            shape = (examples, *parameter.shape)
            if place not in found or found[place].shape != shape:
                seen = tuple(found[place].shape) if place in found else "none"
                raise NoBackEnd(f"Expected a gradient {shape} for each trained tensor, found {seen} for one.")
        return [found[place] for place in range(len(self._trained))]

    def _forward(self, owner: _Owner) -> Callable[..., Tensor | None]:
        names = frozenset(owner.places)

        def keep(module: nn.Module, args: tuple[object, ...], kwargs: object, output: object) -> Tensor | None:
            if self._busy or not torch.is_grad_enabled():
                return None
            if kwargs or not isinstance(output, Tensor) or not all(isinstance(one, Tensor) for one in args):
                raise NoBackEnd(f"Expected {type(module).__name__} to map tensors to a tensor, found another call.")
            inputs = tuple(cast("Tensor", one).detach() for one in args)
            finish = RULES.get(type(module), any_module)(module, inputs, names)
            # Nothing below requires a gradient: from here on the graph begins.
            result = output if output.requires_grad else output.detach().requires_grad_()
            result.register_hook(lambda gradient: self._backward(owner, finish, gradient))  # type: ignore[no-untyped-call]
            return result

        return keep

    @torch.no_grad()
    def _backward(self, owner: _Owner, finish: Finish, gradient: Tensor) -> None:
        self._busy = True
        try:
            for name, value in finish(gradient.detach()).items():
                place = owner.places[name]
                self._found[place] = self._found[place] + value if place in self._found else value
        finally:
            self._busy = False


def micro_gradients(loss: Tensor, trained: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients of one example's loss, each (1, *shape); zeros where a parameter has no part in it."""
    found = torch.autograd.grad(loss, list(trained), allow_unused=True)
    return [
        torch.zeros_like(parameter)[None] if gradient is None else gradient[None]
        for parameter, gradient in zip(trained, found, strict=True)
    ]


def owner_paths(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> dict[str, dict[str, int]]:
    """The paths of the called modules that own trained parameters, each with theirs: name within it -> place in all.

    Raises:
        NoBackEnd: a parameter does not belong to the model.
    """
    modules = dict(model.named_modules())
    found: dict[str, dict[str, int]] = {}
    for place, name in enumerate(trained):
        path = name.rpartition(".")[0]
        while path in modules and type(modules[path]) in _CONTAINERS:
            path = path.rpartition(".")[0]
        if path not in modules:
            raise NoBackEnd(f"Expected {name} in the model, found no such module.")
        found.setdefault(path, {})[name[len(path) + 1 :]] = place
    return found


def _owners(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[_Owner]:
    modules = dict(model.named_modules())
    return [_Owner(modules[path], local) for path, local in owner_paths(model, trained).items()]


def _tokens(x: Tensor) -> Tensor:
    """(b, ..., d) -> (b, s, d)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _linear(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    x = _tokens(inputs[0])

    def finish(gradient: Tensor) -> Gradients:
        g = _tokens(gradient)  # (b, s, d_out)
        found = {"weight": torch.bmm(g.transpose(1, 2), x.to(g.dtype)), "bias": g.sum(1)}
        return {name: found[name] for name in names}

    return finish


def _columns(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    part, narrow = cast("Columns", module), _tokens(inputs[0])  # (b, s, r)

    def finish(gradient: Tensor) -> Gradients:
        g = _tokens(gradient).to(narrow.dtype)
        up = torch.bmm(g.transpose(1, 2), narrow).mul_(part.scale)  # (b, d_out, r)
        return _cut(part, up, 1, names)

    return finish


def _rows(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    part, x = cast("Rows", module), _tokens(inputs[0])

    def finish(gradient: Tensor) -> Gradients:
        g = _tokens(gradient)  # (b, s, r)
        return _cut(part, torch.bmm(g.transpose(1, 2), x.to(g.dtype)), 0, names)

    return finish


def _cut(tiers: nn.ParameterDict, whole: Tensor, dim: int, names: frozenset[str]) -> Gradients:
    """Of a factor's gradient, (b, *shape), those of its tiers, which lie along a dimension of the factor."""
    found, start = {}, 0
    for name, tier in tiers.items():
        if name in names:
            found[name] = whole.narrow(dim + 1, start, tier.shape[dim])
        start += tier.shape[dim]
    return found


def _bias(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    return lambda gradient: {"delta": _tokens(gradient).sum(1)}


def _output_gain(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    y = inputs[1]
    return lambda gradient: {"delta": _tokens(gradient * y).sum(1)}


def _input_gain(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    x = inputs[0]
    return lambda gradient: {"delta": _tokens(gradient * x).sum(1)}


def _norm(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    part, x = cast("NormPart", module), inputs[0]

    def finish(gradient: Tensor) -> Gradients:
        width, wide = part.gain.shape, x.to(part.gain.dtype)
        normed = functional.layer_norm(wide, width, eps=part.eps) if part.centred else None
        if normed is None:
            normed = functional.rms_norm(wide, width, eps=part.eps)
        found = {"gain": _tokens(gradient * normed).sum(1), "bias": _tokens(gradient).sum(1)}
        return {name: found[name] for name in names}

    return finish


def any_module(module: nn.Module, inputs: tuple[Tensor, ...], names: frozenset[str]) -> Finish:
    """The module's vector-Jacobian product, one example at a time, all at once."""
    values = {f"inner.{name}": module.get_parameter(name).detach() for name in names}
    bare = _Bare(module)

    def finish(gradient: Tensor) -> Gradients:
        def one(g: Tensor, *example: Tensor) -> Gradients:
            def output(trained: Gradients) -> Tensor:
                result: Tensor = functional_call(bare, trained, tuple(x[None] for x in example))
                return result[0]

            return cast("Gradients", vjp(output, values)[1](g)[0])

        return {name.removeprefix("inner."): value for name, value in vmap(one)(gradient, *inputs).items()}

    return finish


RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    Columns: _columns,
    Rows: _rows,
    BiasPart: _bias,
    OutputGain: _output_gain,
    InputGain: _input_gain,
    NormPart: _norm,
}
"""Closed forms; ``any_module`` does for every other module."""
