"""Base models by their numbers: two as their manifests have them (tests/planner/test_read_shape.py), or any."""

import math
from typing import TYPE_CHECKING, Any

from fedpeft.layout import layout_of
from fedpeft.planner import BaseShape, Vectors
from fedpeft.planner.read_shape import shape_from

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DECODER", "MINILM", "shape_of_model"]


def shape_of_model(model: "nn.Module") -> BaseShape:
    """The shape of a model in memory, with its class head."""
    config: Any = model.config
    tensors = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    head = [shape for name, shape in tensors.items() if not name.startswith(f"{model.base_model_prefix}.")]
    a_class = sum(math.prod(shape) // shape[0] for shape in head if shape[0] == config.num_labels)
    return shape_from(
        tensors,
        config=config.to_dict() | {"model_type": config.model_type},
        causal=not classifies,
        parameters=total,
        packed_bytes=total,
        head=(sum(map(math.prod, head)) - a_class * config.num_labels, a_class) if classifies else (0, 0),
    )


def _encoder(wide: int, inner: int) -> dict[str, tuple[int, int]]:
    attention = {f"attention.self.{name}": (wide, wide) for name in ("query", "key", "value")}
    rest = {"attention.output.dense": (wide, wide), "intermediate.dense": (inner, wide), "output.dense": (wide, inner)}
    return attention | rest


def _decoder(wide: int, inner: int, keys: int) -> dict[str, tuple[int, int]]:
    attention = {"q": (wide, wide), "k": (keys, wide), "v": (keys, wide), "o": (wide, wide)}
    mlp = {"gate": (inner, wide), "up": (inner, wide), "down": (wide, inner)}
    return {f"self_attn.{name}_proj": shape for name, shape in attention.items()} | {
        f"mlp.{name}_proj": shape for name, shape in mlp.items()
    }


def _layers(stem: str, count: int, matrices: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{index}.{path}": shape for index in range(count) for path, shape in matrices.items()}


MINILM = BaseShape(
    name="bert",
    family="BERT-like",
    layout=layout_of(_layers("bert.encoder.layer", 6, _encoder(384, 1536)), {"model_type": "bert"}),
    vectors=(Vectors(biases=4224, norms=768, norm_biases=768),) * 6,
    causal=False,
    hidden=384,
    inner=1536,
    key_width=384,
    heads=12,
    vocabulary=30522,
    parameters=22_713_216,
    packed_bytes=22_900_000,
    head_once=0,
    head_a_class=385,
    first_token_only=True,
)
DECODER = BaseShape(
    name="llama",
    family="Llama-like",
    layout=layout_of(_layers("model.layers", 30, _decoder(576, 1536, 192)), {"model_type": "llama"}),
    vectors=(Vectors(biases=0, norms=1152, norm_biases=0),) * 30,
    causal=True,
    hidden=576,
    inner=1536,
    key_width=192,
    heads=9,
    vocabulary=49152,
    parameters=134_515_008,
    packed_bytes=117_000_000,
    head_once=0,
    head_a_class=576,
    first_token_only=False,
)
