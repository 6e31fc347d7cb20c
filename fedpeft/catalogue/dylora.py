"""[adapter.dylora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import SCALE, TARGETS, of_every_token, present, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import MEASURES
from fedpeft.catalogue.rates import Placed, low_rank
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "DyLora"]


class DyLora(MethodSection):
    """DyLoRA (Valipour 2023): a step trains a random prefix of the ranks, so that every one is good."""

    rank: int = Field(default=8, ge=1, le=1024, description="The highest rank; prefixes 1..rank are drawn alike.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description=SCALE)


def footprint(shape: BaseShape, settings: DyLora) -> Footprint:
    """A frozen, B trained; keeps A x, at the highest rank that a step may draw."""
    rows, columns = widths(shape, settings.targets)
    return Footprint(
        blocks={BlockId("dylora"): settings.rank * rows},
        frozen={BlockId("dylora.A"): settings.rank * columns},
        saved=settings.rank * len(present(shape, settings.targets)),
        saved_first_token=settings.rank * len(of_every_token(shape, settings.targets)),
        flops=2 * settings.rank * (rows + columns),
    )


def rate(settings: DyLora, placed: Placed) -> float:
    """As LoRA's B over a frozen A."""
    return low_rank(placed, rank=settings.rank, scale=settings.scale)


METHOD = Method(
    name="dylora",
    section=DyLora,
    example=DyLora(rank=4),
    footprint=footprint,
    row=MethodRow(
        title="DyLoRA: good at every rank",
        formula="W x + b + scale * B[:, :k] A[:k] x, k drawn each step",
        paper="Valipour 2023",
        attaches="chosen matrices of the adapted layers",
        summed="exact: A is shared and frozen",
        example_dp="outer product of (A x) and the output's gradient",
        export="PEFT LoRA; its first k ranks are the adapter of rank k",
        served_by=("peft", "vLLM", "llama.cpp"),
    ),
    opacus=MEASURES,
    export=Export(peft_type="LORA", alone=BOTH),
    measures=True,
    rate=rate,
)
