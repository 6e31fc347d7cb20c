"""What several methods of the catalogue share: words of the settings and rows, and counts over matrices."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = [
    "BETWEEN",
    "COPIES",
    "DROPOUT",
    "KEEP",
    "MEAN",
    "OUTER",
    "OWN_FILE",
    "PICKED",
    "PLACES",
    "SCALE",
    "SHARED_FACTORS",
    "SHARED_PARAMETER",
    "TARGETS",
    "WIDTH",
    "Activation",
    "inputs_of",
    "largest",
    "narrow_networks",
    "network",
    "of_every_token",
    "present",
    "widths",
]

Activation = Literal["relu", "gelu"]

WIDTH = "Rows of D: how narrow the bottleneck is."
BETWEEN = "Between D and U."
DROPOUT = "Share of the narrow network's units that a training step leaves out, drawn anew for each."
TARGETS = (
    "Attention (q, k, v, o) and the MLP (up, down, gate), mapped to the model's own names; `auto`: as peft does, q and "
    "v or the matrix that holds them; `all-linear`; `experts`: those of a mixture, its router never; the end of a "
    "module's path (`query_key_value`); or a regular expression of all of it."
)
SCALE = "The factor of B A, the same for every device."
PICKED = "The matrices whose weights may be picked."
KEEP = "Share of these weights that are changed in the end."

MEAN = "the mean of the parameters: exact as a sum, the model is not linear in them"
OUTER = "outer products of each matrix's input and its output's gradient"
SHARED_FACTORS = "one example at a time: all places share the factors"
COPIES = "the gradient of each example's copy of the rows"
SHARED_PARAMETER = "one example at a time: all examples share the parameter"
PLACES = "outputs of attention and feed-forward in the adapted layers, before the residual"
OWN_FILE = "union.safetensors only"


def present(shape: BaseShape, targets: Iterable[TargetName]) -> list[tuple[int, int]]:
    """(d_out, d_in) of the targets that this layer has."""
    return shape.matrices(targets)


def of_every_token(shape: BaseShape, targets: Iterable[TargetName]) -> list[tuple[int, int]]:
    """Those that a last layer for one token still computes for every token: keys and values."""
    layer = shape.layout.layers[shape.at]
    whole = {port for slot in ("k", "v") for port in layer.slots.get(slot, ())}
    return [layer.shape(port) for port in shape.ports(targets) if port in whole]


def inputs_of(shape: BaseShape, targets: Iterable[TargetName]) -> int:
    """Widths of the different inputs of the targets: q, k and v read one, up and gate another."""
    layer = shape.layout.layers[shape.at]
    readers = {port.path: slot for slot, ports in layer.slots.items() for port in ports}
    shared = {"k": "q", "v": "q", "gate": "up"}
    sources = {}
    for port in shape.ports(targets):
        slot = readers.get(port.path, port.path)
        sources[shared.get(slot, slot)] = layer.shape(port)[1]
    return sum(sources.values())


def widths(shape: BaseShape, targets: Iterable[TargetName]) -> tuple[int, int]:
    """Rows and columns of the targets, summed."""
    found = present(shape, targets)
    return sum(out for out, _ in found), sum(width for _, width in found)


def network(shape: BaseShape, narrow: int) -> int:
    """Coordinates of D, d, U and u."""
    return 2 * shape.hidden * narrow + narrow + shape.hidden


def narrow_networks(
    shape: BaseShape, method: str, places: int, narrow: int, activation: Activation, size: int, *, once: int = 0
) -> Footprint:
    """Networks of width ``narrow`` in so many places of a layer; ``size`` coordinates a layer, ``once`` for all."""
    inner = narrow if activation == "relu" else 2 * narrow
    return Footprint(
        blocks={BlockId(method): size},
        shared={BlockId(method): once},
        saved=places * (shape.hidden + inner),
        flops=places * 4 * shape.hidden * narrow,
    )


def largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Where the ``count`` largest are; of equal ones the first, so that every machine chooses alike."""
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)
