"""[adapter.hypernetwork]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import (
    BETWEEN,
    MEAN,
    OWN_FILE,
    PLACES,
    SHARED_FACTORS,
    WIDTH,
    Activation,
    narrow_networks,
)
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import SHARED
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Hypernetwork"]


class Hypernetwork(MethodSection):
    """Hypernetwork adapters (Mahabadi 2021b): one network makes houlsby's bottlenecks of all layers."""

    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    embedding: int = Field(
        default=8, ge=1, le=1024, description="Width of the embeddings of layer, place and task, and of their mixture."
    )
    activation: Activation = Field(default="relu", description=BETWEEN)


def footprint(shape: BaseShape, settings: Hypernetwork) -> Footprint:
    """An embedding a layer, and the network once."""
    if not shape.has("o", "down"):
        return Footprint(blocks={})
    narrow, wide, size = settings.width, shape.hidden, settings.embedding
    network, task = BlockId("hypernetwork"), BlockId("hypernetwork.task")
    once = 2 * size + 3 * size * size + size + 2 * narrow * wide * size
    one = narrow_networks(shape, "hypernetwork", 2, narrow, settings.activation, size)
    return Footprint(
        blocks={network: size, task: 0}, shared={network: once, task: size}, saved=one.saved, flops=one.flops
    )


METHOD = Method(
    name="hypernetwork",
    section=Hypernetwork,
    example=Hypernetwork(width=4),
    footprint=footprint,
    row=MethodRow(
        title="Hypernetwork adapters",
        formula="y + U act(D y), [D, U] = N relu(P [task; layer; place] + c)",
        paper="Karimi Mahabadi 2021 (HyperFormer)",
        attaches=f"{PLACES}; one network makes the adapters of all layers",
        summed=f"{MEAN}; the task's embedding is a block of its own",
        example_dp=SHARED_FACTORS,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=SHARED,
)
