"""What each method sends per round: coordinates and bytes on given bases (docs/methods.md). Counted, not measured."""

from collections.abc import Mapping

from fedpeft.catalogue import ROWS
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.config.model import Adapter
from fedpeft.planner.placement import present_methods, spec_of
from fedpeft.ring import RingParams

__all__ = ["markdown_sizes"]

_RING = RingParams(bits=32, addends=8)


def markdown_sizes(shapes: Mapping[str, tuple[BaseShape, int]]) -> str:
    """A table of every method at its defaults on all layers.

    Args:
        shapes: a base and the classes of its task (0: a language model), by the name to print.
    """
    heads = [f"{name}: {what}" for name in shapes for what in ("trained", "of the base", "kB up")]
    lines = [f"| Method | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for method in ROWS:
        cells = [cell for shape, classes in shapes.values() for cell in _cells(method, shape, classes)]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(method: str, shape: BaseShape, classes: int) -> tuple[str, str, str]:
    alone = method == "head"
    adapter = Adapter() if alone else Adapter.model_validate({method: {}, "head": False})
    if (alone and not classes) or (not alone and method not in present_methods(shape, adapter)):
        return "-", "-", "-"
    spec = spec_of(shape, adapter, classes=classes if alone else 0)
    sizes = [block.size for block in spec.blocks if block.trainable]
    up = sum(_RING.size_bytes(size) for size in sizes)
    return f"{sum(sizes):,}", f"{sum(sizes) / shape.parameters:.2%}", f"{up / 1000:,.0f}"
