"""[adapter.parallel]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import (
    BETWEEN,
    DROPOUT,
    MEAN,
    OUTER,
    OWN_FILE,
    WIDTH,
    Activation,
    narrow_networks,
    network,
)
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED

__all__ = ["METHOD", "Parallel"]


class Parallel(MethodSection):
    """Parallel adapters (He 2022): FFN(x) + scale * (U act(D x + d) + u), U = 0 at the start."""

    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    activation: Activation = Field(default="relu", description=BETWEEN)
    scale: float = Field(default=4.0, gt=0, description="Fixed factor of the adapter; the paper's 4.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description=DROPOUT)


def footprint(shape: BaseShape, settings: Parallel) -> Footprint:
    """As one bottleneck."""
    places = len(shape.ports(("down",)))
    size = places * network(shape, settings.width)
    return narrow_networks(shape, "parallel", places, settings.width, settings.activation, size)


METHOD = Method(
    name="parallel",
    section=Parallel,
    example=Parallel(width=4),
    footprint=footprint,
    row=MethodRow(
        title="Parallel adapter",
        formula="FFN(x) + scale * (U act(D x + d) + u)",
        paper="He 2022",
        attaches="beside the feed-forward of the adapted layers",
        summed=MEAN,
        example_dp=OUTER,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=UNMEASURED,
)
