"""[adapter.p_tuning]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import InputSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.ids import BlockId

__all__ = ["METHOD", "PTuning"]


class PTuning(InputSection):
    """P-tuning (Liu 2021): as prompt tuning, the embeddings made by a trained encoder of three matrices."""

    width: int = Field(default=128, ge=1, le=8192, description="Of the encoder's inner layers.")


def footprint(shape: BaseShape, settings: PTuning) -> Footprint:
    """As ``prompt``, with the encoder's table and three matrices."""
    block, wide, narrow = BlockId("p_tuning"), shape.hidden, settings.width
    size = settings.length * wide + 2 * wide * narrow + narrow * narrow + 2 * narrow + wide
    return Footprint(blocks={block: 0}, shared={block: size}, tokens=settings.length)


METHOD = Method(
    name="p_tuning",
    section=PTuning,
    example=PTuning(length=4, width=8),
    footprint=footprint,
    row=MethodRow(
        title="P-tuning",
        formula="[C relu(B relu(A E + a) + b) + c; embed(x)]",
        paper="Liu 2021",
        attaches="the input, below every layer: adapter.layers must be all, and nothing is cached",
        summed=MEAN,
        example_dp="vector-Jacobian products of the encoder, one example at a time in one pass",
        export="PEFT PROMPT_TUNING of the encoder's result when alone; else union.safetensors",
        served_by=("peft",),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="PROMPT_TUNING", alone=BOTH),
    at_input=True,
    switchable=False,
)
