"""The shape of a base model, read from its artifact's manifest: all that the cost model must know. No torch.

A layer's parts are told by the names of its tensors, as ``fedpeft.grafting.anatomy`` tells them by modules: both by the
records of ``fedpeft.families``.
"""

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.base import BaseArtifact
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.errors import ConfigInvalid
from fedpeft.families import FAMILIES

__all__ = ["shape_from", "shape_of"]

_LAYER = re.compile(r"(?P<stem>.*\b(?:layer|layers))\.(?P<index>\d+)\.(?P<rest>.+)")


def shape_of(artifact: BaseArtifact) -> BaseShape:
    """The shape of an artifact's model.

    Raises:
        ConfigInvalid: its layers are of neither family.
    """
    manifest = artifact.manifest
    config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    return shape_from(
        {name: entry.shape for name, entry in manifest.tensors.items()},
        name=manifest.model_type,
        heads=int(config.get("num_attention_heads", 1)),
        parameters=manifest.parameters,
        packed_bytes=next(file.size_bytes for file in manifest.files if file.name == "model.safetensors"),
    )


def shape_from(
    tensors: Mapping[str, tuple[int, ...]], *, name: str, heads: int, parameters: int, packed_bytes: int
) -> BaseShape:
    """As ``shape_of``, from the names and shapes of all tensors."""
    first: dict[str, tuple[int, ...]] = {}
    indices: set[int] = set()
    for tensor, shape in tensors.items():
        if found := _LAYER.fullmatch(tensor):
            indices.add(int(found["index"]))
            if found["index"] == "0":
                first[found["rest"]] = shape
    family = next((one for one in FAMILIES if all(f"{port.path}.weight" in first for port in one.ports.values())), None)
    if family is None:
        known = " or ".join(one.name for one in FAMILIES)
        raise ConfigInvalid(f"Expected a {known} model, found {name} without such layers; choose another base model.")
    matrices = {slot: port.matrix_in(_two(first[f"{port.path}.weight"])) for slot, port in family.ports.items()}
    return BaseShape(
        name=name,
        family=family.name,
        layers=len(indices),
        hidden=matrices["q"][1],
        heads=heads,
        vocabulary=max(shape[0] for tensor, shape in tensors.items() if "embed" in tensor and len(shape) == 2),
        matrices=MappingProxyType(matrices),
        layer_biases=sum(math.prod(shape) for tensor, shape in first.items() if tensor.endswith("bias")),
        norms=_norms(first, "weight"),
        norm_biases=_norms(first, "bias"),
        parameters=parameters,
        packed_bytes=packed_bytes,
        head_is_deep=name in family.deep_heads,
        first_token_only=name in family.first_token_only,
    )


def _norms(layer: Mapping[str, tuple[int, ...]], leaf: str) -> int:
    return sum(math.prod(shape) for name, shape in layer.items() if "norm" in name.lower() and name.endswith(leaf))


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
