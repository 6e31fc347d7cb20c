"""[adapter.compacter]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import BETWEEN, MEAN, OWN_FILE, PLACES, SHARED_FACTORS, WIDTH, Activation, narrow_networks
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import SHARED

__all__ = ["METHOD", "Compacter"]


class Compacter(MethodSection):
    """Compacter (Mahabadi 2021): houlsby's bottlenecks whose matrices are sums of Kronecker products."""

    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    terms: int = Field(
        default=4, ge=1, le=64, description="Kronecker products a matrix; divides the width and the model's."
    )
    rank: int = Field(default=1, ge=1, le=64, description="Of the second factor of each product.")
    activation: Activation = Field(default="gelu", description=BETWEEN)


def footprint(shape: BaseShape, settings: Compacter) -> Footprint:
    """Two bottlenecks in factors, and the slow weights once."""
    both, places = settings.width + shape.hidden, 2 * shape.has("o", "down")
    size = places * (2 * settings.rank * both + both)
    return narrow_networks(
        shape, "compacter", places, settings.width, settings.activation, size, once=settings.terms**3
    )


METHOD = Method(
    name="compacter",
    section=Compacter,
    example=Compacter(width=8),
    footprint=footprint,
    row=MethodRow(
        title="Compacter",
        formula="as bottleneck, D and U each a sum of n products A_i (x) (s_i t_i)",
        paper="Karimi Mahabadi 2021 (Compacter)",
        attaches=f"{PLACES}; the slow weights A are shared by all layers",
        summed=MEAN,
        example_dp=SHARED_FACTORS,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=SHARED,
)
