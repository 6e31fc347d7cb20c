"""What autograd keeps of an architecture's layers, counted on the architecture itself.

Formulas for families of layers (``fedpeft.families``) were off by a factor of two for GPT-2's activation, of six for
Mamba's scan. Here a few layers run once at their full width on weights of zeros that take no memory (their strides are
zero), and the storages that autograd keeps are added up, at a few lengths: attention that keeps its scores grows with
the length, a scan in chunks is padded to one.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpeft.base.architecture import has_two_stacks, quiet_transformers, read_config, skeleton
from fedpeft.base.artifact import TaskName
from fedpeft.base.fit import positions_of
from fedpeft.errors import ConfigInvalid, FedpeftError, foreign
from fedpeft.layout import layout_of

__all__ = ["counted_floats"]

SAME, MIXED = 2, 6
"""Layers of a stack that are run: of those that are all alike, and where the configuration lists their kinds."""
LENGTHS = (32, 128, 256, 512)
WIDEST = 2**27
"""Coordinates of a matrix that is computed with: copies of it may take half a gibibyte."""
PRODUCTS, FLOATS, KEPT = 3e11, 2**25, 2**27
"""What a count may cost, since whoever made the configuration may be nobody's friend: multiplications of all lengths
together, floats of the widest activation, floats that are kept."""
_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers"),
)
"""What configurations call the number of layers."""


def counted_floats(content: Mapping[str, Any], task: TaskName) -> tuple[tuple[int, float], ...]:
    """Floats that autograd keeps for a token in one layer: pairs of a text's length and the mean over the layers.

    Args:
        content: the base's config.json.
        task: one that the base serves.

    Returns:
        By length, ascending, above zero; empty where the layers cannot be run so, or at too high a cost (the caller
        has a formula).
    """
    try:
        # The architecture's own code, on a model that was never meant to compute.
        with quiet_transformers(), foreign(ConfigInvalid):
            config = read_config(_cut(content))
            config._experts_implementation = "eager"  # as a base is loaded
            model = skeleton(config, task).eval()
            shapes = {name.removesuffix(".weight"): tuple(value.shape) for name, value in model.state_dict().items()}
            paths = layout_of({name: shape for name, shape in shapes.items() if len(shape) > 1}, content).paths
            lengths = sorted({min(length, positions_of(content)) for length in LENGTHS})
            bounded = _affordable(model, paths, lengths)
            _fill(_backbone(model))  # the output matrix is not computed with
            found = tuple((length, _count(model, paths, length)) for length in bounded)
    except (FedpeftError, MemoryError):
        return ()
    return found if all(0 < each < math.inf for _, each in found) else ()


def _cut(content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its first layers alone: whatever says how many there are, and lists of one entry each."""
    counts = {key: content[key] for key in _COUNTS if isinstance(content.get(key), int)}
    cut = dict(content)
    for key, count in counts.items():
        lists = {name: value for name, value in content.items() if isinstance(value, list) and len(value) == count > 0}
        alike = all(value.count(value[0]) == count for value in lists.values())
        run = min(count, SAME if alike else MIXED)
        cut |= {**{name: value[:run] for name, value in lists.items()}, key: run}
    return cut


def _affordable(model: nn.Module, paths: Sequence[str], lengths: Sequence[int]) -> list[int]:
    """The lengths that may be run, the shortest first."""
    layers = [parameter for path in paths for parameter in model.get_submodule(path).parameters()]
    coordinates, widest = sum(one.numel() for one in layers), max(max(one.shape) for one in layers if one.dim() > 1)
    tokens = list(accumulate(lengths))
    return [
        length
        for length, so_far in zip(lengths, tokens, strict=True)
        if coordinates * so_far <= PRODUCTS and widest * length <= FLOATS
    ]


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
            if len(kept) % 16 == 0 and sum(kept.values()) > KEPT:
                raise ConfigInvalid(f"Expected layers that keep {KEPT} floats at most, found more.")
        return tensor

    def enter(*_: object) -> None:
        nonlocal inside, passes
        inside, passes = True, passes + 1

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    ids = torch.zeros(1, length, dtype=torch.long)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if has_two_stacks(model) else {"use_cache": False})}
    handles = [
        table.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and not any(name.startswith(f"{path}.") for path in paths)
    ]  # each stack has its own, tied or not
    for layer in map(model.get_submodule, paths):
        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
            _backbone(model)(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(kept.values()) / (length * max(1, passes))
