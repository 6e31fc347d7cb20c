"""Hang a method's parameters under an existing module, without changing the module or its names.

A graft is a small module at ``<path>.fedpeft.<method>``. Forward hooks on the host hand it the host's
input and output. Invariant: a hook reads only the module that it is handed, so a copy of the module tree
works on its own grafts.
"""

from collections.abc import Iterable
from itertools import chain
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fedpeft.base.residency import PackedLayer, PackedWeight
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.expert_views import ExpertView

__all__ = ["GRAFTS", "add_part", "device_of", "graft_input", "graft_output", "graft_residual", "grafts_of"]

GRAFTS = "fedpeft"
_INPUT_GRAFTS = "fedpeft_input"
_RESIDUAL_GRAFTS = "fedpeft_residual"

Part = TypeVar("Part", bound=nn.Module)


def graft_output(host: nn.Module, method: str, part: nn.Module) -> None:
    """From now on the host's output is ``part(x, y)``, x its input and y its output so far.

    Parts of several methods apply in the order in which they were grafted.
    """
    if not hasattr(host, GRAFTS):
        host.register_forward_hook(_after)
    add_part(host, GRAFTS, method, part)


def graft_input(host: nn.Module, method: str, part: nn.Module) -> None:
    """From now on the host's input is ``part(x)``."""
    if not hasattr(host, _INPUT_GRAFTS):
        host.register_forward_pre_hook(_before)
    add_part(host, _INPUT_GRAFTS, method, part)


def graft_residual(host: nn.Module, method: str, part: nn.Module) -> None:
    """From now on the host's second argument r, the residual that it adds, is ``part(r, r)``.

    Several parts apply one on the other's result: ``part(r, result)``.
    """
    if not hasattr(host, _RESIDUAL_GRAFTS):
        host.register_forward_pre_hook(_before_residual)
    add_part(host, _RESIDUAL_GRAFTS, method, part)


def grafts_of(model: nn.Module, kind: type[Part]) -> dict[str, Part]:
    """Every graft of one kind in ``model``, by the path of its host."""
    return {path.rpartition(f".{GRAFTS}")[0]: part for path, part in model.named_modules() if isinstance(part, kind)}


def device_of(host: nn.Module) -> torch.device:
    """Where the host's tensors are, packed ones too, or those that it views; the CPU for a module without any."""
    owner = host.experts if isinstance(host, ExpertView) else host
    packed = (module.packed for module in owner.modules() if isinstance(module, PackedLayer))
    found: Iterable[Tensor | PackedWeight] = chain(owner.parameters(), owner.buffers(), packed)
    return next((one.device for one in found), torch.device("cpu"))


def add_part(host: nn.Module, container: str, method: str, part: nn.Module) -> None:
    """Put ``part`` into the host's dictionary ``container``, made if need be.

    Raises:
        ConfigInvalid: the method is there already.
    """
    if not hasattr(host, container):
        host.add_module(container, nn.ModuleDict())
    parts = cast("nn.ModuleDict", getattr(host, container))
    if method in parts:
        raise ConfigInvalid(f"Expected a model without an adapter, found {method} attached; load the base model anew.")
    parts[method] = part


def _after(host: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for part in cast("nn.ModuleDict", getattr(host, GRAFTS)).values():
        output = part(args[0], output)
    return output


def _before(host: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first = args[0]
    for part in cast("nn.ModuleDict", getattr(host, _INPUT_GRAFTS)).values():
        first = part(first)
    return (first, *args[1:])


def _before_residual(host: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first, residual = args
    result = residual
    for part in cast("nn.ModuleDict", getattr(host, _RESIDUAL_GRAFTS)).values():
        result = part(residual, result)
    return (first, result)
