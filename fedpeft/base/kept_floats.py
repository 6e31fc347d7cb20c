"""What autograd keeps of an architecture's layers, counted on the architecture itself.

Formulas for families of layers (``fedpeft.families``) were off by a factor of two for GPT-2's activation, of six for
Mamba's scan. Here a few layers run once at their full width on weights of zeros that take no memory (their strides are
zero), and the storages that autograd keeps are added up, at a few lengths: attention that keeps its scores grows with
the length, a scan in chunks is padded to one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import has_two_stacks, quiet_transformers, read_config, skeleton
from fedpeft.base.artifact import TaskName
from fedpeft.base.fit import positions_of
from fedpeft.errors import FedpeftError
from fedpeft.layout import layout_of

__all__ = ["counted_floats"]

SAME, MIXED = 2, 6
"""Layers that are run: of those that are all alike, and where the configuration lists their kinds."""
LENGTHS = (32, 128, 256)
WIDEST = 2**27
"""Coordinates of a matrix that is computed with: copies of it may take half a gibibyte."""


def counted_floats(content: Mapping[str, Any], task: TaskName) -> tuple[tuple[int, float], ...]:
    """Floats that autograd keeps for a token in one layer: pairs of a text's length and the mean over the layers.

    Args:
        content: the base's config.json.
        task: one that the base serves.

    Returns:
        Ascending; empty where the layers cannot be run so (the caller has a formula).
    """
    try:
        config = read_config(_cut(content))
        config._experts_implementation = "eager"  # as a base is loaded
        model = skeleton(config, task)
        shapes = {name.removesuffix(".weight"): tuple(value.shape) for name, value in model.state_dict().items()}
        paths = layout_of({name: shape for name, shape in shapes.items() if len(shape) > 1}, content).paths
        _fill(_backbone(model.eval()))  # the output matrix is not computed with
        lengths = {min(length, positions_of(content)) for length in LENGTHS}
        with quiet_transformers():
            return tuple((length, _count(model, paths, length)) for length in sorted(lengths))
    except (FedpeftError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, ImportError):
        return ()  # whatever an architecture's own code raises on a model that was never meant to compute


def _cut(content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its first layers alone: whatever says how many there are, and lists of one entry each."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        count = content.get(key)
        if not isinstance(count, int):
            continue
        lists = {name: value for name, value in content.items() if isinstance(value, list) and len(value) == count}
        alike = all(value.count(value[0]) == count for value in lists.values())
        run = min(count, SAME if alike else MIXED)
        return {**content, **{name: value[:run] for name, value in lists.items()}, key: run}
    return dict(content)


def _backbone(model: nn.Module) -> nn.Module:
    return cast("nn.Module", model.base_model)


def _fill(model: nn.Module) -> None:
    """Zeros in place of every tensor on the meta device; each takes the memory of one number."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            copied = parameter.dim() > 1 and not isinstance(module, nn.Embedding)
            if copied and parameter.numel() > WIDEST:
                raise ValueError(f"{name} is too large to be computed with")
            module._parameters[name] = nn.Parameter(_zeros_like(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _zeros_like(buffer)


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _count(model: nn.Module, paths: Sequence[str], length: int) -> float:
    """Floats a token and pass through a layer, at one length of text."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[object] = []  # or an address could be used twice
    inside, passes = False, 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if inside and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    def enter(*_: object) -> None:
        nonlocal inside, passes
        inside, passes = True, passes + 1

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    ids = torch.zeros(1, length, dtype=torch.long)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if has_two_stacks(model) else {"use_cache": False})}
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handles = [embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())]
    for layer in map(model.get_submodule, paths):
        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
            _backbone(model)(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(kept.values()) / (length * max(1, passes))
