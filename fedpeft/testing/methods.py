"""One small configuration of each method that changes matrices, with what its paper says it holds."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedpeft.base.quantize import Encoding
from fedpeft.config.model import AdaLora, Adapter, DiffPruning, Dora, DyLora, Fish, QaLora, ReLora, Vera
from fedpeft.testing.models import tiny_bert
from fedpeft.testing.packed import pack

__all__ = ["CASES", "Case", "on_base", "rows_and_columns"]

WIDE, INNER, KEYS, LAYERS = 32, 64, 16, 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method on the tiny models: q and v of three layers; v of the decoder is 16 wide.

    Args:
        adapter: without the head.
        size: trained coordinates, from the rows (all d_out) and columns (all d_in) of the targets and their number.
        rounds: so many local rounds train every block at least once.
    """

    adapter: Adapter
    size: Callable[[int, int, int], int]
    rounds: int = 1


CASES = {
    "dora": Case(adapter=Adapter(dora=Dora(rank=4), head=False), size=lambda rows, columns, count: 5 * rows),
    "adalora": Case(
        adapter=Adapter(adalora=AdaLora(rank=4, target_rank=2), head=False),
        size=lambda rows, columns, count: 4 * (rows + columns + count) + 4 * count,
    ),
    "dylora": Case(adapter=Adapter(dylora=DyLora(rank=4), head=False), size=lambda rows, columns, count: 4 * rows),
    "relora": Case(
        adapter=Adapter(relora=ReLora(rank=2, cycles=2, rounds_each=1), head=False),
        size=lambda rows, columns, count: 2 * 2 * rows,
        rounds=2,
    ),
    "qalora": Case(adapter=Adapter(qalora=QaLora(rank=1), head=False), size=lambda rows, columns, count: rows),
    "vera": Case(
        adapter=Adapter(vera=Vera(rank=16, initial=1.0), head=False),
        size=lambda rows, columns, count: 16 * count + rows,
    ),
    "diffpruning": Case(
        adapter=Adapter(diffpruning=DiffPruning(prune_round=2), head=False),
        size=lambda rows, columns, count: 2 * rows * WIDE,
    ),
    "fish": Case(
        adapter=Adapter(fish=Fish(keep=0.01), head=False),
        # The Fisher information of all weights, and a hundredth of a layer's weights three times.
        size=lambda rows, columns, count: rows * WIDE + LAYERS * round(0.01 * rows * WIDE / LAYERS),
        rounds=2,
    ),
}


def rows_and_columns(build: Callable[..., nn.Module]) -> tuple[int, int, int]:
    """All rows, all columns and the number of q and v in three layers."""
    rows = WIDE + (WIDE if build is tiny_bert else KEYS)
    return LAYERS * rows, LAYERS * 2 * WIDE, LAYERS * 2


def on_base(build: Callable[..., nn.Module], encoding: Encoding) -> nn.Module:
    """The tiny model dense (``plain``), or with its linear layers packed."""
    return build() if encoding == "plain" else pack(build(), encoding)
