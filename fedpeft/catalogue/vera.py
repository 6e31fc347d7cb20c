"""[adapter.vera]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import TARGETS, of_every_token, present, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Vera"]


class Vera(MethodSection):
    """VeRA (Kopiczko 2024): one random A and B for all matrices, never sent; each trains two vectors."""

    rank: int = Field(default=64, ge=1, le=4096, description="Rows of the shared A.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    initial: float = Field(default=0.1, gt=0, description="What d begins with; b begins with zero.")


def footprint(shape: BaseShape, settings: Vera) -> Footprint:
    """d and b; keeps A x and B (d A x) of every target."""
    rows, columns = widths(shape, settings.targets)
    rank, count = settings.rank, len(present(shape, settings.targets))
    first = of_every_token(shape, settings.targets)
    return Footprint(
        blocks={BlockId("vera"): count * rank + rows},
        saved=rank * count + rows,
        saved_first_token=rank * len(first) + sum(out for out, _ in first),
        flops=2 * rank * (rows + columns) + 2 * rows,
    )


METHOD = Method(
    name="vera",
    section=Vera,
    example=Vera(rank=16, initial=1.0),
    footprint=footprint,
    row=MethodRow(
        title="VeRA: one shared random pair",
        formula="W x + b * B (d * A x)",
        paper="Kopiczko 2024",
        attaches="chosen matrices of the adapted layers; A and B come from the seed and are never sent",
        summed="the mean of d and of b; the change is not linear in them together",
        example_dp="products of each vector's input and gradient summed over tokens",
        export="PEFT VERA with its projections; beside a low-rank method in union.safetensors only",
        served_by=("peft",),
    ),
    opacus=RIGHT,
    export=Export(peft_type="VERA", alone=BOTH),
)
