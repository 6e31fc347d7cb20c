"""Where a transformer's layers keep their matrices, told from the names and shapes of its weights. No torch.

A *slot* is the field's short name of a matrix: q, k, v, o of attention, up, down, gate of the feed-forward. ``PLAIN``
and ``fused_rows.FUSED`` are the tables of what architectures call them; a layer may lack a slot (hybrids), have it
twice (an encoder-decoder's cross-attention), keep it as some rows of a wider matrix (a fused qkv), or turned (Conv1D).
Who reads it: ``fedpeft.grafting.anatomy`` with a model's modules, ``fedpeft.planner`` with an artifact's manifest.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.fused_rows import FUSED, Rows
from fedpeft.target_names import ALL_LINEAR, AUTO, EXPERTS, SLOTS, is_pattern

__all__ = ["Layer", "Layout", "Port", "Rows", "layout_of"]

Shape = tuple[int, int]

PLAIN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "q": (
            *("attention.self.query", "attention.query", "q_proj", "q_lin", "query_proj", "attn.q", "q_head"),
            *("SelfAttention.q", "EncDecAttention.q", "q_b_proj", "attention.receptance"),
        ),
        "k": (
            *("attention.self.key", "attention.key", "k_proj", "k_lin", "key_proj", "attn.k", "k_head"),
            *("SelfAttention.k", "EncDecAttention.k"),
        ),
        "v": (
            *("attention.self.value", "attention.value", "v_proj", "v_lin", "value_proj", "attn.v", "v_head"),
            *("SelfAttention.v", "EncDecAttention.v"),
        ),
        "o": (
            *("attention.output.dense", "o_proj", "attn.out_proj", "attention.out_proj", "self_attn.out_proj"),
            *("encoder_attn.out_proj", "out_lin", "attn.c_proj", "attention.dense", "self_attention.dense"),
            *("self_attn.dense", "attn.Wo", "attn.o", "post_proj", "attention.output", "SelfAttention.o"),
            *("EncDecAttention.o", "linear_attn.out_proj", "conv.out_proj"),
        ),
        "up": (
            *("intermediate.dense", "up_proj", "fc1", "fc_in", "mlp.c_fc", "dense_h_to_4h", "ffn.lin1"),
            *("ffn.linear_1", "ff.layer_1", "ffn", "DenseReluDense.wi", "DenseReluDense.wi_1", "feed_forward.w3"),
            *("feed_forward.key",),
        ),
        "down": (
            *("output.dense", "down_proj", "fc2", "fc_out", "mlp.c_proj", "dense_4h_to_h", "ffn.lin2"),
            *("ffn.linear_2", "ff.layer_2", "ffn_output", "DenseReluDense.wo", "feed_forward.w2", "mlp.Wo"),
            *("feed_forward.value", "shared_mlp.output_linear"),
        ),
        "gate": ("gate_proj", "DenseReluDense.wi_0", "feed_forward.w1"),
    }
)
"""Slot -> ends of a module's path, whole components; the first slot that has one takes the module."""

TURNED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose layers are made of Conv1D, which stores (d_in, d_out)."""

PEFT_DEFAULTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "phi": ("q_proj", "v_proj", "fc1", "fc2"),
        "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "rwkv": ("key", "value", "receptance", "output"),
    }
)
"""What peft trains where it is neither q and v nor the matrix that holds them; a test compares all with peft."""

# Two-dimensional weights that no method may sit on: tables and norms, routers and mixing coefficients, and what Mamba's
# fused kernels read past the module, so that a change of the module would do nothing (peft refuses these as well).
NOT_LINEAR = re.compile(
    r"embed|relative_attention_bias|norm$|(^|\.)altup\.|(^|\.)(modality_)?router$|(mlp|moe|feed_forward)\.gate$|dt_proj$"
    r"|(mixer|mamba)\.out_proj$"
)
# Tensors of three dimensions, (experts, d_out, d_in); of these model types (experts, d_in, d_out), as their classes say
# (``is_transposed``; a test compares them with all of transformers).
EXPERT = re.compile(r"(.+\.)?experts\.(gate_up_proj|up_proj|down_proj)")
TURNED_EXPERTS = frozenset({"gpt_oss", "aria_text", "openai_privacy_filter"})
NO_EXPERTS = frozenset({"llama4_text"})
"""Model types whose experts are computed in a way of their own: neither packed nor a target."""
LAYER = re.compile(r"(?P<stem>(?:[^.]*[^.\d][^.]*\.)+)(?P<index>\d+(?:\.\d+)*)\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Where a layer keeps one matrix.

    Args:
        path: of the module, inside a layer.
        rows: of the module's output; None: all.
        transposed: the module stores (d_in, d_out), as Conv1D does.
        expert: ``path`` names a tensor of several experts' matrices, and this is one of them; None: it names a module.
    """

    path: str
    rows: Rows | None = None
    transposed: bool = False
    expert: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, by paths inside it.

    Args:
        matrices: (d_out, d_in) of every linear module, in the model's order.
        slots: the matrices that have a short name; a slot with none is not there.
        transposed: whether its modules store (d_in, d_out).
        experts: how many there are and (d_out, d_in) of each, of every tensor that holds experts' matrices.
    """

    matrices: Mapping[str, Shape]
    slots: Mapping[str, tuple[Port, ...]]
    transposed: bool = False
    experts: Mapping[str, tuple[int, Shape]] = field(default_factory=dict)

    def shape(self, port: Port) -> Shape:
        """(d_out, d_in) of one of its matrices."""
        if port.expert is not None:
            return self.experts[port.path][1]
        out, width = self.matrices[port.path]
        return (out if port.rows is None else port.rows.count(out)), width

    def module(self, path: str) -> Port:
        """A linear module as a whole."""
        return Port(path=path, transposed=self.transposed)

    def experts_in(self, target: str) -> tuple[Port, ...]:
        """Every expert's matrices that a target names: ``experts``, or the end of a tensor's path from there on."""
        named = [
            path for path in self.experts if target == EXPERTS or (EXPERT.fullmatch(target) and _ends_in(path, target))
        ]
        return tuple(Port(path=path, expert=index) for path in named for index in range(self.experts[path][0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All layers of a model.

    Args:
        model_type: as transformers calls it.
        paths: of the layers, from the input up; those of an encoder come before those of its decoder.
        layers: what each has.
    """

    model_type: str
    paths: tuple[str, ...]
    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def slots(self) -> tuple[str, ...]:
        """The short names that some layer has."""
        return tuple(slot for slot in SLOTS if any(slot in layer.slots for layer in self.layers))

    def naming(self, named: Mapping[str, str]) -> "Layout":
        """The same layers with short names for modules that the table does not know.

        Args:
            named: slot -> end of a module's path, as [adapter.slots] has it; goes before the table.
        """
        return replace(self, layers=tuple(_named(layer, named) for layer in self.layers)) if named else self

    def select(self, index: int, target: str) -> tuple[Port, ...]:
        """The matrices of one layer that ``target`` names.

        Args:
            index: of the layer.
            target: a slot; ``auto``, ``all-linear``, ``experts``; the end of a module's path, as peft takes it
                (``query_key_value``); or a regular expression of its whole path.
        """
        layer = self.layers[index]
        if target in SLOTS and target in layer.slots:
            return layer.slots[target]
        if target == AUTO:
            return self.selected(index, self.usual)
        if experts := layer.experts_in(target):
            return experts
        if target == ALL_LINEAR:
            return tuple(layer.module(path) for path in layer.matrices)
        if is_pattern(target):
            named = (path for path in layer.matrices if re.fullmatch(target, f"{self.paths[index]}.{path}"))
        else:
            named = (path for path in layer.matrices if _ends_in(path, target))
        return tuple(layer.module(path) for path in named)

    def selected(self, index: int, targets: Iterable[str]) -> tuple[Port, ...]:
        """The matrices of one layer that any of ``targets`` names, each once."""
        return tuple(dict.fromkeys(port for target in targets for port in self.select(index, target)))

    @property
    def usual(self) -> tuple[str, ...]:
        """What ``auto`` stands for: names of modules."""
        if (own := PEFT_DEFAULTS.get(self.model_type)) is not None:
            return own
        ports = (port for slot in ("q", "v") for layer in self.layers for port in layer.slots.get(slot, ()))
        return tuple(dict.fromkeys(port.path for port in ports)) or (ALL_LINEAR,)


def layout_of(weights: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Layout:
    """The layers of a model.

    Args:
        weights: shapes of its weights by name, as stored, without ``.weight``; those of two dimensions count, and
            those of three that hold the matrices of experts.
        config: its config.json: the model type, how many heads.

    Raises:
        ConfigInvalid: no numbered list of layers with linear modules.
    """
    model_type = str(config.get("model_type"))
    stacks: dict[str, dict[str, dict[str, Shape]]] = {}
    experts: dict[str, dict[str, tuple[int, Shape]]] = {}
    turned = model_type in TURNED
    for name, shape in weights.items():
        if len(shape) == 3 and (found := LAYER.fullmatch(name)) is not None and EXPERT.fullmatch(found["rest"]):
            if model_type not in NO_EXPERTS:
                pair = (shape[2], shape[1]) if model_type in TURNED_EXPERTS else (shape[1], shape[2])
                experts.setdefault(found["stem"] + found["index"], {})[found["rest"]] = (shape[0], pair)
            continue
        if len(shape) != 2 or (found := LAYER.fullmatch(name)) is None or NOT_LINEAR.search(found["rest"]):
            continue
        layers = stacks.setdefault(found["stem"], {})
        matrix = (shape[1], shape[0]) if turned else (shape[0], shape[1])
        layers.setdefault(found["stem"] + found["index"], {})[found["rest"]] = matrix
    if not stacks:
        raise ConfigInvalid(
            f"Expected a transformer with numbered layers, found {model_type} with none; use another model.",
            problems=[Problem(where="base.model", expected="layers.0, layers.1, ...", found=_some(weights))],
        )
    made = {
        stem: {
            path: _layer(modules, config, turned, MappingProxyType(experts.get(path, {})))
            for path, modules in layers.items()
        }
        for stem, layers in stacks.items()
    }
    best = max(made, key=lambda stem: _weight(made[stem].values()))
    chosen = made[best]
    if config.get("is_encoder_decoder"):
        towers = [
            stem for stem in made if re.search(r"\b(en|de)coder\b", stem) and _weight(made[stem].values()) > (0, 0)
        ]
        towers.sort(key=lambda stem: "decoder" in stem)
        chosen = {path: layer for stem in towers for path, layer in made[stem].items()}
    kinds: list[Layer] = []  # equal layers are one object: costs are counted once for each kind
    for layer in chosen.values():
        kinds += [] if layer in kinds else [layer]
    return Layout(
        model_type=model_type, paths=tuple(chosen), layers=tuple(kinds[kinds.index(one)] for one in chosen.values())
    )


def _weight(layers: Iterable[Layer]) -> tuple[int, int]:
    every = list(layers)
    return sum(len(layer.slots) for layer in every), sum(len(layer.matrices) for layer in every)


def _layer(
    modules: Mapping[str, Shape],
    config: Mapping[str, Any],
    turned: bool,
    experts: Mapping[str, tuple[int, Shape]],
) -> Layer:
    slots: dict[str, list[Port]] = {}
    for path, (out, _) in modules.items():
        slot = next((slot for slot, ends in PLAIN.items() if any(_ends_in(path, end) for end in ends)), None)
        if slot is not None:
            slots.setdefault(slot, []).append(Port(path=path, transposed=turned))
            continue
        split = next((split for end, split in FUSED.items() if _ends_in(path, end)), None)
        for part, rows in ({} if split is None else split(out, config)).items():
            slots.setdefault(part, []).append(Port(path=path, rows=rows, transposed=turned))
    ordered = {slot: tuple(slots[slot]) for slot in SLOTS if slot in slots}
    return Layer(
        matrices=MappingProxyType(dict(modules)),
        slots=MappingProxyType(ordered),
        transposed=turned,
        experts=experts,
    )


def _named(layer: Layer, named: Mapping[str, str]) -> Layer:
    own = {
        slot: tuple(layer.module(path) for path in layer.matrices if _ends_in(path, end)) for slot, end in named.items()
    }
    taken = {port.path for ports in own.values() for port in ports}
    rest = {slot: tuple(p for p in ports if p.path not in taken) for slot, ports in layer.slots.items()}
    slots = {slot: (*own.get(slot, ()), *rest.get(slot, ())) for slot in SLOTS}
    return replace(layer, slots=MappingProxyType({slot: ports for slot, ports in slots.items() if ports}))


def _ends_in(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") if listed else "nothing"
