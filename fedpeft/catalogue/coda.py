"""[adapter.coda]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import BETWEEN, MEAN, OWN_FILE, WIDTH, Activation, narrow_networks, network
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import NO_EXAMPLES

__all__ = ["METHOD", "Coda"]


class Coda(MethodSection):
    """CoDA (Lei 2023): the tokens that a router picks go through the layer; all go through a bottleneck beside it."""

    capacity: float = Field(default=0.5, gt=0, le=1, description="Share of an example's tokens that are picked.")
    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    activation: Activation = Field(default="relu", description=BETWEEN)


def footprint(shape: BaseShape, settings: Coda) -> Footprint:
    """A router and a bottleneck; what the layer saves by computing fewer tokens is not counted."""
    if not shape.has("down"):
        return Footprint(blocks={})
    size = network(shape, settings.width) + shape.hidden
    return narrow_networks(shape, "coda", 1, settings.width, settings.activation, size)


METHOD = Method(
    name="coda",
    section=Coda,
    example=Coda(width=4),
    footprint=footprint,
    row=MethodRow(
        title="CoDA: conditional adapters",
        formula="x + f(x) + m * (layer(x) - x) for picked tokens, x + f(x) for the others",
        paper="Lei 2023",
        attaches="around every adapted layer; the router picks the tokens that go through it",
        summed=f"{MEAN}; each device routes by the mean router",
        example_dp="one example at a time: a token's weight depends on the others",
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=NO_EXAMPLES,
    picks_tokens=True,
    switchable=False,
)
