"""The shape of a base model, read from its artifact's manifest: all that the cost model must know. No torch.

A layer's parts are told by the names of its tensors, as ``fedpeft.grafting.anatomy`` tells them by modules; a
test holds the two together. Slots are the field's short names of the matrices: q, k, v, o, up, down, gate.
"""

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.base import BaseArtifact
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.errors import ConfigInvalid

__all__ = ["SLOTS", "shape_from", "shape_of"]

SLOTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "BERT-like": MappingProxyType(
            {
                "attention.self.query": "q",
                "attention.self.key": "k",
                "attention.self.value": "v",
                "attention.output.dense": "o",
                "intermediate.dense": "up",
                "output.dense": "down",
            }
        ),
        "Llama-like": MappingProxyType(
            {
                "self_attn.q_proj": "q",
                "self_attn.k_proj": "k",
                "self_attn.v_proj": "v",
                "self_attn.o_proj": "o",
                "mlp.up_proj": "up",
                "mlp.down_proj": "down",
                "mlp.gate_proj": "gate",
            }
        ),
    }
)
"""Path of a matrix inside a layer -> its slot, by family."""

_LAYER = re.compile(r"(?P<stem>.*\b(?:layer|layers))\.(?P<index>\d+)\.(?P<rest>.+)")
_READS_FIRST_TOKEN = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})  # as tuning.stages has it
_DEEP_HEAD = frozenset({"camembert", "electra", "roberta", "xlm-roberta"})  # a dense layer before the output


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
    family = next((family for family, paths in SLOTS.items() if all(f"{p}.weight" in first for p in paths)), None)
    if family is None:
        raise ConfigInvalid(
            f"Expected a {' or '.join(SLOTS)} model, found {name} without such layers; choose another base model."
        )
    matrices = {slot: _two(first[f"{path}.weight"]) for path, slot in SLOTS[family].items()}
    return BaseShape(
        name=name,
        family=family,
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
        head_is_deep=name in _DEEP_HEAD,
        first_token_only=name in _READS_FIRST_TOKEN,
    )


def _norms(layer: Mapping[str, tuple[int, ...]], leaf: str) -> int:
    return sum(math.prod(shape) for name, shape in layer.items() if "norm" in name.lower() and name.endswith(leaf))


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
