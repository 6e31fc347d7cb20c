"""Where a union adapter's methods sit on a base, and the blocks that they make there, by the catalogue's counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import AnyMethod
from fedpeft.config.adapter import Adapter
from fedpeft.ids import BlockId
from fedpeft.target_names import is_pattern

__all__ = ["Placed", "adapted_layers", "placed_methods", "present_methods", "spec_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One method in its layers.

    Args:
        footprints: in each layer, from the input up; equal layers share one.
        first, stop: the lowest layer that may have it, and the one after the last.
    """

    footprints: tuple[Footprint, ...]
    first: int
    stop: int

    @property
    def last(self) -> Footprint:
        """In the uppermost of its layers."""
        return self.footprints[-1]

    @property
    def tokens(self) -> int:
        """That it adds to every example."""
        return max(one.tokens for one in self.footprints)

    @property
    def saved(self) -> int:
        """Floats a token that autograd keeps in all its layers."""
        return sum(one.saved for one in self.footprints)

    @property
    def kept(self) -> int:
        """Floats that autograd keeps however many tokens there are."""
        return sum(one.kept for one in self.footprints)

    @property
    def flops(self) -> int:
        """Operations a token in all its layers."""
        return sum(one.flops for one in self.footprints)

    def sizes(self, *, trainable: bool) -> dict[BlockId, int]:
        """Coordinates of its blocks, those that a round may train or the others."""
        found: dict[BlockId, int] = {}
        shared = {block: size for one in self.footprints for block, size in one.shared.items()}
        for one in self.footprints:
            for block, size in (one.blocks if trainable else one.frozen).items():
                found[block] = found.get(block, shared.get(block, 0)) + size
        return found


class _Same(Generic[T]):
    """An argument of a cache by which object it is: layouts are slow to compare, and a plan asks again."""

    __slots__ = ("it",)

    def __init__(self, it: T) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.it is self.it


def placed_methods(shape: BaseShape, adapter: Adapter) -> Mapping[str, Placed]:
    """The methods that this adapter has on this base, the head aside, and where; the last pairs asked for are kept."""
    return _kept(_Same(shape), _Same(adapter))


@lru_cache(maxsize=256)
def _kept(shape: _Same[BaseShape], adapter: _Same[Adapter]) -> Mapping[str, Placed]:
    return MappingProxyType(_placed(shape.it, adapter.it))


def _placed(shape: BaseShape, adapter: Adapter) -> dict[str, Placed]:
    lowest = 0 if adapter.layers == "all" else shape.layers - adapter.layers
    shape = replace(shape, layout=shape.layout.naming(adapter.slots or {}))
    if adapter.of(BitFit) is not None:
        shape = replace(shape, norm_biases_taken=True)  # every bias is BitFit's then
    found = {}
    for method, settings in adapter.declared():
        own: tuple[int, int] | None = getattr(settings, "layers", None)
        first, stop = (lowest, shape.layers) if own is None else (own[0], min(own[1] + 1, shape.layers))
        footprints = _footprints(shape, method, settings, range(first, stop))
        if any(sum(one.blocks.values()) + sum(one.shared.values()) for one in footprints):
            found[method.name] = Placed(footprints=footprints, first=first, stop=stop)
    return found


def _footprints(shape: BaseShape, method: AnyMethod, settings: Any, layers: range) -> tuple[Footprint, ...]:
    """In each of these layers; counted once for those that are alike."""
    apart = any(is_pattern(target) for target in getattr(settings, "targets", ()))  # it may read the layer's number
    known: dict[object, Footprint] = {}
    made = []
    for index in layers:
        kind = index if apart else (id(shape.layout.layers[index]), shape.vectors[index])
        if kind not in known:
            known[kind] = method.footprint(shape.looking_at(index), settings)
        made.append(known[kind])
    return tuple(made)


def present_methods(shape: BaseShape, adapter: Adapter) -> tuple[str, ...]:
    """The methods that this adapter has on this base, the head aside."""
    return tuple(placed_methods(shape, adapter))


def adapted_layers(shape: BaseShape, adapter: Adapter) -> int:
    """How many layers there are from the lowest that carries an adapter up: none when only the head is trained."""
    return shape.layers - adapter.lowest_layer(shape.layers)


def spec_of(shape: BaseShape, adapter: Adapter, *, classes: int) -> AdapterSpec:
    """The adapter's blocks with their true sizes, one tensor each: for counting and choosing, not for the wire.

    Args:
        classes: of the head; 0 for a language model.
    """
    blocks: list[BlockSpec] = []
    for name, one in placed_methods(shape, adapter).items():
        for trainable in (False, True):
            sizes: Mapping[BlockId, int] = one.sizes(trainable=trainable)
            blocks += [_block(block_id, name, size, trainable) for block_id, size in sizes.items()]
    if adapter.head and classes:
        blocks.append(_block(BlockId("head"), "head", shape.head_parameters(classes), True))
    return AdapterSpec(blocks=tuple(blocks))


def _block(block_id: BlockId, method: str, size: int, trainable: bool) -> BlockSpec:
    tensor = TensorSpec(name=str(block_id), shape=(size,))
    return BlockSpec(block_id=block_id, method=method, tensors=(tensor,), trainable=trainable)
