"""[adapter.prompt]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from typing import Literal

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import COPIES, MEAN
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import InputSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Prompt"]


class Prompt(InputSection):
    """Prompt tuning (Lester 2021): trained embeddings before the input. Needs adapter.layers = "all"."""

    init: Literal["vocabulary", "gaussian"] = Field(
        default="vocabulary", description="Rows of the token embedding drawn from the seed, or noise of their size."
    )


def footprint(shape: BaseShape, settings: Prompt) -> Footprint:
    """Rows before the input: they cost what tokens cost."""
    block = BlockId("prompt")
    return Footprint(blocks={block: 0}, shared={block: settings.length * shape.hidden}, tokens=settings.length)


METHOD = Method(
    name="prompt",
    section=Prompt,
    example=Prompt(length=4),
    footprint=footprint,
    row=MethodRow(
        title="Prompt tuning",
        formula="[P; embed(x)]",
        paper="Lester 2021",
        attaches="the input, below every layer: adapter.layers must be all, and nothing is cached",
        summed=MEAN,
        example_dp=COPIES,
        export="PEFT PROMPT_TUNING when alone; else union.safetensors",
        served_by=("peft",),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="PROMPT_TUNING", alone=BOTH),
    at_input=True,
    switchable=False,
)
