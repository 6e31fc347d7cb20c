"""[adapter.qalora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import SCALE, TARGETS, of_every_token, present, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "QaLora"]


class QaLora(MethodSection):
    """QA-LoRA (Xu 2024): A reads sums of 32 inputs, so that B A merges into an int4-g32 base's minima, exactly."""

    rank: int = Field(default=8, ge=1, le=1024, description="At most a matrix's inputs / 32.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description=SCALE)


def footprint(shape: BaseShape, settings: QaLora) -> Footprint:
    """A over groups of 32 inputs frozen, B trained; keeps A p(x)."""
    if any(columns % 32 for _, columns in present(shape, settings.targets)):
        return Footprint(blocks={})
    rows, columns = widths(shape, settings.targets)
    return Footprint(
        blocks={BlockId("qalora"): settings.rank * rows},
        frozen={BlockId("qalora.A"): settings.rank * columns // 32},
        saved=settings.rank * len(present(shape, settings.targets)),
        saved_first_token=settings.rank * len(of_every_token(shape, settings.targets)),
        flops=2 * settings.rank * (rows + columns // 32) + columns,
    )


METHOD = Method(
    name="qalora",
    section=QaLora,
    example=QaLora(rank=1),
    footprint=footprint,
    row=MethodRow(
        title="QA-LoRA: merges into an int4-g32 base",
        formula="W x + b + scale * B A p(x), p the sums of 32 neighbouring inputs",
        paper="Xu 2024",
        attaches="chosen matrices of the adapted layers whose inputs are a multiple of 32",
        summed="exact: A is shared and frozen",
        example_dp="outer product of (A p(x)) and the output's gradient",
        export="PEFT LoRA with A's columns repeated",
        served_by=("peft", "vLLM", "llama.cpp"),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="LORA", alone=BOTH),
)
