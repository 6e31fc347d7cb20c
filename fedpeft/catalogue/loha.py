"""[adapter.loha]: its settings, costs and documentation; the torch part is ``fedpeft.methods.loha``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN, TARGETS, inputs_of, present, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "LoHa"]


class LoHa(MethodSection):
    """LoHa (Hyeon-Woo 2022, FedPara): the product of two low-rank changes, entry by entry: up to rank r * r."""

    rank: int = Field(default=4, ge=1, le=1024, description="Of each of the two; the product has up to its square.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description="The factor of the product, the same for every device.")


def footprint(shape: BaseShape, settings: LoHa) -> Footprint:
    """Two pairs of factors; keeps the input, both dense changes and their product."""
    rows, columns = widths(shape, settings.targets)
    weights = sum(out * width for out, width in present(shape, settings.targets))
    return Footprint(
        blocks={BlockId("loha"): 2 * settings.rank * (rows + columns)},
        kept=3 * weights,
        saved=inputs_of(shape, settings.targets),
        flops=2 * weights,
    )


METHOD = Method(
    name="loha",
    section=LoHa,
    example=LoHa(rank=2),
    footprint=footprint,
    row=MethodRow(
        title="LoHa: a Hadamard product of two low-rank changes",
        formula="W x + b + scale * ((B_1 A_1) * (B_2 A_2)) x",
        paper="Hyeon-Woo 2022 (FedPara)",
        attaches="chosen matrices of the adapted layers",
        summed=MEAN,
        example_dp="vector-Jacobian products of each matrix, one example at a time in one pass",
        export="PEFT LOHA; beside another method of matrices or biases in union.safetensors only",
        served_by=("peft",),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="LOHA", alone=BOTH),
)
