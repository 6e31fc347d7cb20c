"""Opening a source's weights: its config, and named tensors that are read when they are needed.

Safetensors are read through a memory map, row by row; so is a GGUF file (``gguf``), which is converted once, at
the publisher.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpeft.base.architecture import clean_config
from fedpeft.base.gguf import open_gguf
from fedpeft.base.source import CONFIG_FILE, ModelSource, read_json, weight_files
from fedpeft.base.tensors import RowTensor
from fedpeft.errors import ConfigInvalid

__all__ = ["Checkpoint", "open_checkpoint"]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights and config of a source.

    Args:
        config: config.json, cleaned.
        tensors: by the source's own names.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, RowTensor]


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a resolved source.

    Raises:
        ConfigInvalid: the weights cannot be read, or transformers cannot convert them.
    """
    if source.root is None:
        raise ValueError(f"Expected a source with files, found {source.origin}.")
    if source.kind == "gguf":
        config, tensors = open_gguf(source.files[0])
        return Checkpoint(config=config, tensors=tensors)
    return _open_safetensors(source.root)


def _open_safetensors(root: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, RowTensor] = {}
    for path in weight_files(root):
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise ConfigInvalid(f"Expected safetensors in {path}, found {error}; fetch the file again.") from error
        for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
            part = file.get_slice(name)  # type: ignore[no-untyped-call]
            if (dtype := DTYPES.get(part.get_dtype())) is None:
                raise ConfigInvalid(
                    f"Expected weights in float32, float16 or bfloat16, found {name} in {part.get_dtype()}; "
                    "start from the unquantized weights."
                )
            if name in tensors:
                raise ConfigInvalid(f"Expected {name} in one file of {root}, found it in two; remove one of them.")
            shape = tuple(part.get_shape())
            tensors[name] = RowTensor(shape, dtype, _reader(file, name, shape))
    return Checkpoint(config=clean_config(read_json(root / CONFIG_FILE)), tensors=tensors)


def _reader(file: Any, name: str, shape: tuple[int, ...]) -> Callable[[int, int], Tensor]:
    """Rows of one tensor of an open file: copied out of its memory map slab by slab."""

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = file.get_slice(name)[start:stop] if shape else file.get_tensor(name)
        return rows

    return read
