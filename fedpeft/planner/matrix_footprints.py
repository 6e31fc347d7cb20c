"""What the methods that change a matrix add to a layer (see ``fedpeft.planner.placement``)."""

from collections.abc import Iterable

from fedpeft.aggregate.schedule import relora_block
from fedpeft.config.derived import fish_picks
from fedpeft.config.reparameterized import AdaLora, Dora, DyLora, QaLora, ReLora, Vera
from fedpeft.config.section import TargetName
from fedpeft.config.selective import DiffPruning, Fish
from fedpeft.ids import BlockId
from fedpeft.planner.counts import Footprint
from fedpeft.planner.read_shape import BaseShape

__all__ = ["adalora", "diffpruning", "dora", "dylora", "fish", "qalora", "relora", "vera"]


def dora(shape: BaseShape, settings: Dora) -> Footprint:
    """A frozen; B and a magnitude a row; keeps A x and the output that the gain multiplies, of every target."""
    rows, columns = _widths(shape, settings.targets)
    rank, count = settings.rank, len(_present(shape, settings.targets))
    first = _present(shape, _of_every_token(settings.targets))
    return Footprint(
        blocks={BlockId("dora"): (rank + 1) * rows},
        frozen={BlockId("dora.A"): rank * columns},
        saved=rank * count + rows,
        saved_first_token=rank * len(first) + sum(out for out, _ in first),
        flops=2 * rank * (rows + columns) + 2 * rows,
    )


def adalora(shape: BaseShape, settings: AdaLora) -> Footprint:
    """P, l, Q and a score a triplet; the mask frozen. Keeps the input, Q x and l Q x of every target."""
    rows, columns = _widths(shape, settings.targets)
    rank, count = settings.rank, len(_present(shape, settings.targets))
    first = len(_present(shape, _of_every_token(settings.targets)))
    return Footprint(
        blocks={
            BlockId("adalora"): rank * (rows + columns + count),
            BlockId("adalora.score"): rank * count,
        },
        frozen={BlockId("adalora.mask"): rank * count},
        saved=2 * rank * count + _inputs(shape, settings.targets),
        saved_first_token=2 * rank * first,
        flops=2 * rank * (rows + columns),
    )


def dylora(shape: BaseShape, settings: DyLora) -> Footprint:
    """A frozen, B trained; keeps A x, at the highest rank that a step may draw."""
    rows, columns = _widths(shape, settings.targets)
    return Footprint(
        blocks={BlockId("dylora"): settings.rank * rows},
        frozen={BlockId("dylora.A"): settings.rank * columns},
        saved=settings.rank * len(_present(shape, settings.targets)),
        saved_first_token=settings.rank * len(_present(shape, _of_every_token(settings.targets))),
        flops=2 * settings.rank * (rows + columns),
    )


def relora(shape: BaseShape, settings: ReLora) -> Footprint:
    """A frozen and B trained, cycle by cycle; keeps A x of all cycles."""
    rows, columns = _widths(shape, settings.targets)
    cycles, whole = range(1, settings.cycles + 1), settings.rank * settings.cycles
    return Footprint(
        blocks={relora_block("B", cycle): settings.rank * rows for cycle in cycles},
        frozen={relora_block("A", cycle): settings.rank * columns for cycle in cycles},
        saved=whole * len(_present(shape, settings.targets)),
        saved_first_token=whole * len(_present(shape, _of_every_token(settings.targets))),
        flops=2 * whole * (rows + columns),
    )


def qalora(shape: BaseShape, settings: QaLora) -> Footprint:
    """A over groups of 32 inputs frozen, B trained; keeps A p(x)."""
    if any(columns % 32 for _, columns in _present(shape, settings.targets)):
        return Footprint(blocks={})
    rows, columns = _widths(shape, settings.targets)
    return Footprint(
        blocks={BlockId("qalora"): settings.rank * rows},
        frozen={BlockId("qalora.A"): settings.rank * columns // 32},
        saved=settings.rank * len(_present(shape, settings.targets)),
        saved_first_token=settings.rank * len(_present(shape, _of_every_token(settings.targets))),
        flops=2 * settings.rank * (rows + columns // 32) + columns,
    )


def vera(shape: BaseShape, settings: Vera) -> Footprint:
    """d and b; keeps A x and B (d A x) of every target."""
    rows, columns = _widths(shape, settings.targets)
    rank, count = settings.rank, len(_present(shape, settings.targets))
    first = _present(shape, _of_every_token(settings.targets))
    return Footprint(
        blocks={BlockId("vera"): count * rank + rows},
        saved=rank * count + rows,
        saved_first_token=rank * len(first) + sum(out for out, _ in first),
        flops=2 * rank * (rows + columns) + 2 * rows,
    )


def diffpruning(shape: BaseShape, settings: DiffPruning) -> Footprint:
    """A change and a gate a weight; keeps the input of every target, and four matrices of its size on the way to it."""
    weights = sum(out * width for out, width in _present(shape, settings.targets))
    return Footprint(
        blocks={BlockId("diffpruning"): weights, BlockId("diffpruning.gate"): weights},
        kept=4 * weights,
        saved=_inputs(shape, settings.targets),
        flops=2 * weights,
    )


def fish(shape: BaseShape, settings: Fish) -> Footprint:
    """A value and a place a picked weight, a measurement a weight; keeps the input and the dense change."""
    weights = sum(out * width for out, width in _present(shape, settings.targets))
    picks = fish_picks(settings, weights, 1)
    return Footprint(
        blocks={BlockId("fish"): picks, BlockId("fish.fisher"): weights},
        frozen={BlockId("fish.places"): 2 * picks},
        kept=weights,
        saved=_inputs(shape, settings.targets),
        flops=2 * weights,
    )


def _present(shape: BaseShape, targets: Iterable[TargetName]) -> list[tuple[int, int]]:
    """(d_out, d_in) of the targets that this base has."""
    return [shape.matrices[target] for target in targets if target in shape.matrices]


def _of_every_token(targets: Iterable[TargetName]) -> list[TargetName]:
    """Those that a last layer for one token still computes for every token: keys and values."""
    return [target for target in targets if target in ("k", "v")]


def _inputs(shape: BaseShape, targets: Iterable[TargetName]) -> int:
    """Widths of the different inputs of the targets: q, k and v read one, up and gate another."""
    shared = {"k": "q", "v": "q", "gate": "up"}
    sources = {shared.get(target, target): shape.matrices[target][1] for target in targets if target in shape.matrices}
    return sum(sources.values())


def _widths(shape: BaseShape, targets: Iterable[TargetName]) -> tuple[int, int]:
    """Rows and columns of the targets, summed."""
    found = _present(shape, targets)
    return sum(out for out, _ in found), sum(width for _, width in found)
