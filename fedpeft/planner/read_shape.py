"""The shape of a base model, read from its artifact: all that the cost model must know. No torch.

A layer's parts are told by the names of its tensors, as ``fedpeft.grafting.anatomy`` tells them by modules: both by
``fedpeft.layout``.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedpeft.base import BaseArtifact, facts_of
from fedpeft.base.source import CONFIG_FILE, read_json
from fedpeft.catalogue.base_shape import BaseShape, Vectors
from fedpeft.families import FIRST_TOKEN_ONLY, LayerKind, family_of
from fedpeft.layout import Layout, layout_of
from fedpeft.tasks.form import TEXT

__all__ = ["shape_from", "shape_of"]


def shape_of(artifact: BaseArtifact) -> BaseShape:
    """The shape of an artifact's model.

    Raises:
        ConfigInvalid: it has no numbered layers.
    """
    manifest, facts = artifact.manifest, facts_of(artifact).model
    return shape_from(
        {name: entry.shape for name, entry in manifest.tensors.items()},
        config=read_json(artifact.path / CONFIG_FILE),
        causal=TEXT in manifest.tasks,
        parameters=manifest.parameters,
        packed_bytes=next(file.size_bytes for file in manifest.files if file.name == "model.safetensors"),
        head=(facts.head.once, facts.head.a_class),
        counted=facts.kept_floats,
    )


def shape_from(
    tensors: Mapping[str, tuple[int, ...]],
    *,
    config: Mapping[str, Any],
    causal: bool,
    parameters: int,
    packed_bytes: int,
    head: tuple[int, int] = (0, 0),
    counted: tuple[tuple[int, float], ...] = (),
) -> BaseShape:
    """As ``shape_of``, from the names and shapes of all tensors, config.json, the class head's size, and counts."""
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if name.endswith(".weight") or len(shape) == 3
    }
    layout, name = layout_of(weights, config), str(config.get("model_type"))
    hidden = _hidden(layout, config)
    coordinates, inner = _experts(tensors, config, hidden)
    kind = LayerKind(model_type=name, matrices=frozenset(layout.slots), has_experts=coordinates > 0)
    declared = _first(config, "num_hidden_layers", "n_layer", "n_layers") or 1
    return BaseShape(
        name=name,
        family=family_of(kind).name,
        layout=layout,
        vectors=tuple(_vectors(tensors, path) for path in layout.paths),
        causal=causal,
        hidden=hidden,
        inner=_widest(layout, "up") + inner or 4 * hidden,
        key_width=_widest(layout, "k") or hidden,
        heads=_first(config, "num_attention_heads", "n_head", "n_heads", "num_heads") or 1,
        vocabulary=max((shape[0] for tensor, shape in tensors.items() if _is_embedding(tensor, shape)), default=1),
        passes=max(1, declared // len(layout)),
        experts=coordinates // len(layout),
        experts_a_token=_chosen_experts(config) if coordinates else 0,
        parameters=parameters,
        packed_bytes=packed_bytes,
        head_once=head[0],
        head_a_class=head[1],
        first_token_only=name in FIRST_TOKEN_ONLY,
        counted=counted,
    )


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)


def _hidden(layout: Layout, config: Mapping[str, Any]) -> int:
    first = next(iter(layout.layers[0].matrices.values()))
    return _first(config, "hidden_size", "n_embd", "d_model", "dim") or first[1]


def _widest(layout: Layout, slot: str) -> int:
    """Output rows of a slot in the layer that has most of them."""
    return max(sum(layer.shape(port)[0] for port in layer.slots.get(slot, ())) for layer in layout.layers)


def _chosen_experts(config: Mapping[str, Any]) -> int:
    return _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k") or 2


def _experts(tensors: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    """Coordinates of expert matrices that a token goes through, all layers together, and the width of one layer's."""
    chosen = _chosen_experts(config)
    found = {name: shape for name, shape in tensors.items() if len(shape) == 3 and "experts" in name}
    active = sum(min(chosen, experts) * rows * columns for experts, rows, columns in found.values())
    down = [(experts, rows * columns) for name, (experts, rows, columns) in found.items() if "down" in name]
    return active, max((min(chosen, experts) * size // hidden for experts, size in down), default=0)


def _is_embedding(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and ("embed" in name or ".wte." in name)


def _vectors(tensors: Mapping[str, tuple[int, ...]], layer: str) -> Vectors:
    own = {name: math.prod(shape) for name, shape in tensors.items() if name.startswith(f"{layer}.")}
    norms = dict(_norms(own, tensors))
    return Vectors(
        biases=sum(size for name, size in own.items() if name.endswith(".bias")),
        norms=sum(size for name, size in norms.items() if name.endswith(".weight")),
        norm_biases=sum(size for name, size in norms.items() if name.endswith(".bias")),
    )


def _norms(own: Mapping[str, int], tensors: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    """Weights of one dimension, and the biases beside them: what ``fedpeft.methods.layernorm`` takes."""
    for name, size in own.items():
        stem, _, leaf = name.rpartition(".")
        if leaf in ("weight", "bias") and len(tensors.get(f"{stem}.weight", ())) == 1:
            yield name, size
