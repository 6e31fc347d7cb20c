"""[adapter.dora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import SCALE, TARGETS, of_every_token, present, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Dora"]


class Dora(MethodSection):
    """DoRA (Liu 2024): a matrix as magnitude times direction; B changes the direction, a delta a row the magnitude."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of the change of direction.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description=SCALE)


def footprint(shape: BaseShape, settings: Dora) -> Footprint:
    """A frozen; B and a magnitude a row; keeps A x and the output that the gain multiplies, of every target."""
    rows, columns = widths(shape, settings.targets)
    rank, count = settings.rank, len(present(shape, settings.targets))
    first = of_every_token(shape, settings.targets)
    return Footprint(
        blocks={BlockId("dora"): (rank + 1) * rows},
        frozen={BlockId("dora.A"): rank * columns},
        saved=rank * count + rows,
        saved_first_token=rank * len(first) + sum(out for out, _ in first),
        flops=2 * rank * (rows + columns) + 2 * rows,
    )


METHOD = Method(
    name="dora",
    section=Dora,
    example=Dora(rank=4),
    footprint=footprint,
    row=MethodRow(
        title="DoRA: magnitude and direction",
        formula="(norm(W) + delta) * (W + scale * B A) / norm(W + scale * B A)",
        paper="Liu 2024",
        attaches="chosen matrices of the adapted layers",
        summed="the mean of B and of the magnitudes; the matrix is not linear in them together",
        example_dp="outer product of (A x) and the output's gradient; product of output and gradient",
        export="PEFT LoRA with use_dora; beside another low-rank method in union.safetensors only",
        served_by=("peft",),
    ),
    opacus=RIGHT,
    export=Export(peft_type="LORA", alone=BOTH, more="use_dora"),
)
