"""A second module tree over the same tensors."""

import copy
from collections.abc import Collection

from torch import nn

__all__ = ["replicate_modules"]


def replicate_modules(model: nn.Module, *, own: Collection[str]) -> nn.Module:
    """Copy every module of ``model`` and no tensor, except the parameters named in ``own``, which are cloned.

    Attributes that are neither modules nor tensors (configurations, packed weights) are shared as well: the
    base is frozen. Hooks come along, so they must work on the module that they are handed.
    """
    copies: dict[int, nn.Module] = {}
    replica = _copied(model, copies)
    for name in own:
        path, _, leaf = name.rpartition(".")
        holder = replica.get_submodule(path)
        parameter = holder.get_parameter(leaf)
        holder._parameters[leaf] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    return replica


def _copied(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    if id(module) in copies:  # a module that hangs in two places stays one
        return copies[id(module)]
    twin = copies[id(module)] = copy.copy(module)
    # The dictionaries (parameters, buffers, children, hooks) become the twin's own; their values are shared.
    vars(twin).update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _copied(child, copies)
    return twin
