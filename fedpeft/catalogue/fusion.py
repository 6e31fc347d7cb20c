"""[adapter.fusion]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from typing import Annotated

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN, OUTER, OWN_FILE, Activation, network
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Fusion"]


class Fusion(MethodSection):
    """AdapterFusion (Pfeiffer 2021): attention over pfeiffer bottlenecks of earlier runs, named in base.adapters."""

    tasks: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], ...] = Field(
        default=("one", "two"), min_length=2, description="Their names; the folders are in base.adapters."
    )
    width: int = Field(default=16, ge=1, le=8192, description="Of their bottlenecks.")
    activation: Activation = Field(default="relu", description="Of their bottlenecks.")
    scale: float = Field(default=1.0, gt=0, description="Of their bottlenecks.")


def footprint(shape: BaseShape, settings: Fusion) -> Footprint:
    """The tasks' frozen bottlenecks; Q, K and V; keeps what every adapter made, its key, and the question."""
    if not shape.has("down"):
        return Footprint(blocks={})
    wide, count = shape.hidden, len(settings.tasks)
    return Footprint(
        blocks={BlockId("fusion"): 3 * wide * wide},
        frozen={BlockId(f"fusion.{task}"): network(shape, settings.width) for task in settings.tasks},
        saved=count * (3 * wide + settings.width) + 3 * wide,
        flops=count * (4 * wide * settings.width + 2 * wide * wide) + 4 * wide * wide,
    )


METHOD = Method(
    name="fusion",
    section=Fusion,
    example=Fusion(width=4),
    footprint=footprint,
    row=MethodRow(
        title="AdapterFusion",
        formula="y + V sum_n softmax_n((Q y) (K z_n)) z_n, z_n = scale * (U_n act(D_n y + d_n) + u_n)",
        paper="Pfeiffer 2021 (AdapterFusion)",
        attaches="the feed-forward's output of the adapted layers, over frozen adapters of earlier runs",
        summed=f"{MEAN}; the fused adapters are frozen and sent once",
        example_dp=OUTER,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=UNMEASURED,
    made_of_runs=True,
)
