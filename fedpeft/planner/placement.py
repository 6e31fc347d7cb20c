"""What each method adds to a base: blocks, activations kept for the backward pass, operations.

One function a method, from the base's shape and the method's section of run.toml alone. Counts are exact (tests compare
them with the adapter that ``fedpeft.methods.attach`` makes); what autograd keeps follows from which tensors
require gradients: a method that is applied and not trained keeps nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.config.adapter import Adapter, BitFit, Ia3, LayerNorm, Lora
from fedpeft.config.derived import lora_tiers
from fedpeft.ids import BlockId
from fedpeft.planner.additive_footprints import bottleneck, coda, compacter, fusion, hypernetwork, parallel, unipelt
from fedpeft.planner.counts import Footprint
from fedpeft.planner.matrix_footprints import adalora, diffpruning, dora, dylora, fish, qalora, relora, vera
from fedpeft.planner.prompt_footprints import llama_adapter, p_tuning, p_tuning_v2, prefix, prompt
from fedpeft.planner.read_shape import BaseShape

__all__ = ["FOOTPRINTS", "Footprint", "Placed", "adapted_layers", "placed_methods", "present_methods", "spec_of"]


def lora(shape: BaseShape, settings: Lora) -> Footprint:
    """Tiers of A (frozen) and B; keeps A x, (r,), of every target."""
    rank, targets = settings.rank, [shape.matrices[t] for t in settings.targets if t in shape.matrices]
    rows, columns = sum(out for out, _ in targets), sum(width for _, width in targets)
    tiers = lora_tiers(settings)
    widths = {end: end - start for start, end in zip((0, *tiers), tiers, strict=False)}
    return Footprint(
        blocks={BlockId(f"lora.B.t{end}"): width * rows for end, width in widths.items()},
        frozen={BlockId(f"lora.A.t{end}"): width * columns for end, width in widths.items()},
        saved=rank * len(targets),
        saved_first_token=rank * sum(target in ("k", "v") for target in settings.targets),
        flops=2 * rank * (rows + columns),
    )


def bitfit(shape: BaseShape, _: BitFit) -> Footprint:
    """A delta a bias; an addition keeps nothing."""
    if not shape.layer_biases:
        return Footprint(blocks={})
    return Footprint(blocks={BlockId("bitfit"): shape.layer_biases}, flops=2 * shape.layer_biases)


def layernorm(shape: BaseShape, _: LayerNorm) -> Footprint:
    """A delta on every norm's gain and bias; a gain keeps the normalised input."""
    block = {BlockId("layernorm"): shape.norms + shape.norm_biases}
    return Footprint(blocks=block, saved=shape.norms, flops=8 * shape.norms)


def ia3(shape: BaseShape, _: Ia3) -> Footprint:
    """Gains on keys, values and the MLP's inner activation; a product keeps its other factor."""
    width = 2 * shape.key_width + shape.inner
    return Footprint(
        blocks={BlockId("ia3"): width}, saved=width, saved_first_token=2 * shape.key_width, flops=2 * width
    )


def head(shape: BaseShape, _: bool) -> Footprint:
    """The class head is in no layer: ``spec_of`` counts it apart."""
    return Footprint(blocks={})


FOOTPRINTS: Mapping[str, Callable[[BaseShape, Any], Footprint]] = MappingProxyType(
    {
        "lora": lora,
        "dora": dora,
        "adalora": adalora,
        "dylora": dylora,
        "relora": relora,
        "qalora": qalora,
        "vera": vera,
        "diffpruning": diffpruning,
        "fish": fish,
        "bitfit": bitfit,
        "layernorm": layernorm,
        "ia3": ia3,
        "bottleneck": bottleneck,
        "parallel": parallel,
        "compacter": compacter,
        "hypernetwork": hypernetwork,
        "fusion": fusion,
        "prompt": prompt,
        "p_tuning": p_tuning,
        "prefix": prefix,
        "p_tuning_v2": p_tuning_v2,
        "llama_adapter": llama_adapter,
        "unipelt": unipelt,
        "coda": coda,
        "head": head,
    }
)
"""By method, in the order of ``fedpeft.methods.union.METHODS``."""


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
    if adapter.bitfit is not None:
        shape = replace(shape, norm_biases=0)  # every bias is BitFit's then
    found = {}
    for name, footprint_of in FOOTPRINTS.items():
        section = getattr(adapter, name)
        if name != "head" and section is not None and (footprint := footprint_of(shape, section)).blocks:
            own: tuple[int, int] | None = getattr(section, "layers", None)
            first, stop = (lowest, shape.layers) if own is None else (own[0], own[1] + 1)
            found[name] = Placed(footprint=footprint, first=first, stop=stop)
    return found


def present_methods(shape: BaseShape, adapter: Adapter) -> tuple[str, ...]:
    """The methods that this adapter has on this base, the head aside."""
    return tuple(placed_methods(shape, adapter))


def adapted_layers(shape: BaseShape, adapter: Adapter) -> int:
    """How many layers there are from the lowest that carries an adapter up: none when only the head is trained."""
    return max((shape.layers - one.first for one in placed_methods(shape, adapter).values()), default=0)


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
