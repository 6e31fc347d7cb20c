"""One small configuration of each method that changes matrices, gains or biases, with what its paper says it holds."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from fedpeft.base.quantize import Encoding
from fedpeft.config.model import (
    AdaLora,
    Adapter,
    BitFit,
    DiffPruning,
    Dora,
    DyLora,
    Fish,
    Ia3,
    LayerNorm,
    Lora,
    QaLora,
    ReLora,
    Vera,
)
from fedpeft.testing.models import tiny_bert, tiny_llama
from fedpeft.testing.packed import pack

__all__ = ["CASES", "PAIRS", "Case", "Sizes", "on_base", "sizes_of"]

WIDE, INNER, KEYS, LAYERS = 32, 64, 16, 3


class Sizes(NamedTuple):
    """Of the matrices that a case changes, all layers together.

    Args:
        rows, columns: all d_out and all d_in of q and v.
        matrices: how many.
        keys: d_out of k and v.
        norms: coordinates of the norms, biases included where the model has them.
    """

    rows: int
    columns: int
    matrices: int
    keys: int
    norms: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method on the tiny models: q and v of three layers; v of the decoder is 16 wide.

    Args:
        adapter: without the head.
        size: trained coordinates by the paper's formula.
        rounds: so many local rounds train every block at least once.
        encoder_only: whether a model without biases refuses it.
    """

    adapter: Adapter
    size: Callable[[Sizes], int]
    rounds: int = 1
    encoder_only: bool = False


CASES = {
    "lora": Case(adapter=Adapter.having(Lora(rank=4), head=False), size=lambda of: 4 * of.rows),
    "bitfit": Case(
        adapter=Adapter.having(BitFit(), head=False),
        size=lambda of: LAYERS * (4 * WIDE + INNER + WIDE + 2 * WIDE),
        encoder_only=True,
    ),
    "layernorm": Case(adapter=Adapter.having(LayerNorm(), head=False), size=lambda of: of.norms),
    "ia3": Case(adapter=Adapter.having(Ia3(), head=False), size=lambda of: of.keys + LAYERS * INNER),
    "dora": Case(adapter=Adapter.having(Dora(rank=4), head=False), size=lambda of: 5 * of.rows),
    "adalora": Case(
        adapter=Adapter.having(AdaLora(rank=4, target_rank=2), head=False),
        size=lambda of: 4 * (of.rows + of.columns + of.matrices) + 4 * of.matrices,
    ),
    "dylora": Case(adapter=Adapter.having(DyLora(rank=4), head=False), size=lambda of: 4 * of.rows),
    "relora": Case(
        adapter=Adapter.having(ReLora(rank=2, cycles=2, rounds_each=1), head=False),
        size=lambda of: 2 * 2 * of.rows,
        rounds=2,
    ),
    "qalora": Case(adapter=Adapter.having(QaLora(rank=1), head=False), size=lambda of: of.rows),
    "vera": Case(
        adapter=Adapter.having(Vera(rank=16, initial=1.0), head=False), size=lambda of: 16 * of.matrices + of.rows
    ),
    "diffpruning": Case(
        adapter=Adapter.having(DiffPruning(prune_round=2), head=False), size=lambda of: 2 * of.rows * WIDE
    ),
    "fish": Case(
        adapter=Adapter.having(Fish(keep=0.01), head=False),
        # The Fisher information of all weights, and a hundredth of a layer's weights three times.
        size=lambda of: of.rows * WIDE + LAYERS * round(0.01 * of.rows * WIDE / LAYERS),
        rounds=2,
    ),
}

PAIRS = [
    (method, build)
    for method, case in CASES.items()
    for build in ((tiny_bert,) if case.encoder_only else (tiny_bert, tiny_llama))
]
"""Every case on every model that takes it."""


def sizes_of(build: Callable[..., nn.Module]) -> Sizes:
    """Of the tiny model that ``build`` makes."""
    values, biases = (WIDE, 2) if build is tiny_bert else (KEYS, 1)
    return Sizes(
        rows=LAYERS * (WIDE + values),
        columns=LAYERS * 2 * WIDE,
        matrices=LAYERS * 2,
        keys=LAYERS * 2 * values,
        norms=LAYERS * 2 * WIDE * biases,
    )


def on_base(build: Callable[..., nn.Module], encoding: Encoding) -> nn.Module:
    """The tiny model dense (``plain``), or with its linear layers packed."""
    return build() if encoding == "plain" else deepcopy(_packed(build, encoding))


@lru_cache(maxsize=8)
def _packed(build: Callable[..., nn.Module], encoding: Encoding) -> nn.Module:
    return pack(build(), encoding)
