"""[adapter.bottleneck]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from typing import Literal

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
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.catalogue.rates import per_matrix

__all__ = ["METHOD", "Bottleneck"]


class Bottleneck(MethodSection):
    """Bottleneck adapters (Houlsby 2019, Pfeiffer 2021): y + scale * (U act(D y + d) + u), U = 0 at the start."""

    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    placement: Literal["houlsby", "pfeiffer"] = Field(
        default="houlsby",
        description="`houlsby`: on the outputs of attention and feed-forward, before the residual is added; "
        "`pfeiffer`: on the feed-forward's only.",
    )
    activation: Activation = Field(default="relu", description=BETWEEN)
    scale: float = Field(default=1.0, gt=0, description="Fixed factor of the adapter.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description=DROPOUT)


def footprint(shape: BaseShape, settings: Bottleneck) -> Footprint:
    """D, d, U, u of one or two narrow networks; each keeps its input and its inner activation."""
    places = len(shape.ports(("o", "down") if settings.placement == "houlsby" else ("down",)))
    size = places * network(shape, settings.width)
    return narrow_networks(shape, "bottleneck", places, settings.width, settings.activation, size)


METHOD = Method(
    name="bottleneck",
    section=Bottleneck,
    example=Bottleneck(width=4),
    footprint=footprint,
    row=MethodRow(
        title="Serial bottleneck adapter",
        formula="y + scale * (U act(D y + d) + u)",
        paper="Houlsby 2019; Pfeiffer 2021",
        attaches="outputs of attention and feed-forward (houlsby), or of the feed-forward alone (pfeiffer)",
        summed=MEAN,
        example_dp=OUTER,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=RIGHT,
    rate=per_matrix(encoder=0.06, decoder=0.06),
)
