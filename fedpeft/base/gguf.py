"""A GGUF file as a checkpoint: read by rows through its memory map, under transformers' names.

Names, config and what transformers undoes of llama.cpp's conversion (permuted heads, shifted norms, stacked experts)
are transformers' own (``modeling_gguf_pytorch_utils``), called for one tensor at a time; its loader holds the whole
file in float32. Embeddings and output layers, the largest, are no one's to rearrange: their blocks are
dequantized row by row.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpeft.base.architecture import clean_config, quiet_transformers, read_config, skeleton
from fedpeft.base.tensors import RowTensor
from fedpeft.errors import ConfigInvalid, ResourceMissing
from fedpeft.tasks.form import TEXT

__all__ = ["open_gguf"]

BY_ROWS = ("token_embd.weight", "output.weight", "per_layer_token_embd.weight")


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, RowTensor]]:
    """Config and tensors, by transformers' names; what transformers has no name for, by the file's.

    Raises:
        ConfigInvalid: transformers does not convert this architecture.
        ResourceMissing: the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ResourceMissing(
            "Expected the package gguf to convert a GGUF file, found none; pip install gguf."
        ) from error
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        load_gguf_checkpoint,
    )

    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its tqdm bar has no switch
            content = load_gguf_checkpoint(str(path))["config"]
            config = clean_config({**content, "architectures": []})
            model = skeleton(read_config(config), TEXT)
            reader = gguf.GGUFReader(str(path))
            architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
            processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=content)
            names = get_gguf_hf_weights_map(model, processor)
    except (ValueError, KeyError, NotImplementedError, IndexError) as error:
        raise ConfigInvalid(
            f"Expected a GGUF file of an architecture that transformers converts in {path}, found {error}; "
            "convert it to safetensors."
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return config, _tensors(reader.tensors, processor, names, shapes)


def _tensors(
    stored: Sequence[Any], processor: Any, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, RowTensor]:
    groups: dict[str, list[Any]] = {}
    for tensor in stored:
        # Stacked experts are listed without a suffix: gate and up of a layer are one tensor of the model.
        name = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight")) or tensor.name
        groups.setdefault(name, []).append(tensor)
    found = {}
    for name, members in groups.items():
        own = tuple(int(size) for size in reversed(members[0].shape))
        if len(members) == 1 and (name not in shapes or (members[0].name in BY_ROWS and own == shapes[name])):
            found[name] = RowTensor(own, torch.float32, functools.partial(_rows, members[0]))
        else:
            convert = functools.partial(_converted, members, processor, names, name, shapes[name])
            found[name] = RowTensor(shapes[name], torch.float32, _Once(convert).rows)
    return found


def _rows(tensor: Any, start: int, stop: int) -> Tensor:
    import gguf

    return torch.from_numpy(np.array(gguf.dequantize(tensor.data[start:stop], tensor.tensor_type)))


def _converted(
    members: Sequence[Any], processor: Any, names: Mapping[str, str], name: str, shape: tuple[int, ...]
) -> Tensor:
    """One tensor of the model, whole, as transformers makes it of the file's."""
    import gguf

    aside: dict[str, Any] = {"tensors": {}}  # where processors put what they merge
    made: Tensor | None = None
    for tensor in members:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        result = processor.process(weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters=aside)
        made = torch.from_numpy(np.array(result.weights)) if result.name is not None else made
    made = aside["tensors"].get(name, made)
    if made is None or tuple(made.shape) != shape:
        found = "none" if made is None else str(tuple(made.shape))
        raise ConfigInvalid(f"Expected {name} {shape} in the GGUF file, found {found}; convert it to safetensors.")
    return made


class _Once:
    """A tensor made whole at its first row and dropped after its last."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of it."""
        made = self._make() if self._made is None else self._made
        self._made = None if stop >= (made.shape[0] if made.ndim else 1) else made
        return made[start:stop] if made.ndim else made
