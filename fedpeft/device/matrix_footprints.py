"""What the methods that change a matrix add to a layer (see ``fedpeft.device.footprint``)."""

from collections.abc import Iterable

from fedpeft.config.model import Adapter
from fedpeft.config.section import TargetName
from fedpeft.device.counts import Footprint
from fedpeft.device.shape import BaseShape
from fedpeft.ids import BlockId

__all__ = ["dora", "vera"]


def dora(shape: BaseShape, adapter: Adapter) -> Footprint:
    """A frozen; B and a magnitude a row; keeps A x and the output that the gain multiplies, of every target."""
    settings = adapter.dora
    if settings is None:
        return Footprint(blocks={})
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


def vera(shape: BaseShape, adapter: Adapter) -> Footprint:
    """d and b; keeps A x and B (d A x) of every target."""
    settings = adapter.vera
    if settings is None:
        return Footprint(blocks={})
    rows, columns = _widths(shape, settings.targets)
    rank, count = settings.rank, len(_present(shape, settings.targets))
    first = _present(shape, _of_every_token(settings.targets))
    return Footprint(
        blocks={BlockId("vera"): count * rank + rows},
        saved=rank * count + rows,
        saved_first_token=rank * len(first) + sum(out for out, _ in first),
        flops=2 * rank * (rows + columns) + 2 * rows,
    )


def _present(shape: BaseShape, targets: Iterable[TargetName]) -> list[tuple[int, int]]:
    """(d_out, d_in) of the targets that this base has."""
    return [shape.matrices[target] for target in targets if target in shape.matrices]


def _of_every_token(targets: Iterable[TargetName]) -> list[TargetName]:
    """Those that a last layer for one token still computes for every token: keys and values."""
    return [target for target in targets if target in ("k", "v")]


def _widths(shape: BaseShape, targets: Iterable[TargetName]) -> tuple[int, int]:
    """Rows and columns of the targets, summed."""
    found = _present(shape, targets)
    return sum(out for out, _ in found), sum(width for _, width in found)
