"""Where a union adapter's methods sit on a base, and the blocks that they make there, by the catalogue's counts."""

from dataclasses import dataclass, replace

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.footprint import Footprint
from fedpeft.config.adapter import Adapter
from fedpeft.ids import BlockId

__all__ = ["Placed", "adapted_layers", "placed_methods", "present_methods", "spec_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One method in its layers.

    Args:
        footprint: in one layer.
        first, stop: the lowest layer that has it, and the one after the last.
    """

    footprint: Footprint
    first: int
    stop: int

    @property
    def layers(self) -> int:
        """How many layers have it."""
        return self.stop - self.first


def placed_methods(shape: BaseShape, adapter: Adapter) -> dict[str, Placed]:
    """The methods that this adapter has on this base, the head aside, and where."""
    lowest = 0 if adapter.layers == "all" else shape.layers - adapter.layers
    if adapter.of(BitFit) is not None:
        shape = replace(shape, norm_biases=0)  # every bias is BitFit's then
    found = {}
    for method, settings in adapter.declared():
        if (footprint := method.footprint(shape, settings)).blocks:
            own: tuple[int, int] | None = getattr(settings, "layers", None)
            first, stop = (lowest, shape.layers) if own is None else (own[0], own[1] + 1)
            found[method.name] = Placed(footprint=footprint, first=first, stop=stop)
    return found


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
        for sizes, trainable in ((one.footprint.frozen, False), (one.footprint.blocks, True)):
            for block_id, size in sizes.items():
                once = one.footprint.shared.get(block_id, 0)
                blocks.append(_block(block_id, name, one.layers * size + once, trainable))
    if adapter.head and classes:
        blocks.append(_block(BlockId("head"), "head", shape.head_parameters(classes), True))
    return AdapterSpec(blocks=tuple(blocks))


def _block(block_id: BlockId, method: str, size: int, trainable: bool) -> BlockSpec:
    tensor = TensorSpec(name=str(block_id), shape=(size,))
    return BlockSpec(block_id=block_id, method=method, tensors=(tensor,), trainable=trainable)
