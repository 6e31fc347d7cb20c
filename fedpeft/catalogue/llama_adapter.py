"""[adapter.llama_adapter]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN, SHARED_PARAMETER
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import NO_EXAMPLES
from fedpeft.ids import BlockId

__all__ = ["METHOD", "LlamaAdapter"]


class LlamaAdapter(MethodSection):
    """LLaMA-Adapter (Zhang 2023): each layer attends to a trained prompt beside its own; a gate begins at zero."""

    length: int = Field(default=10, ge=1, le=1024, description="Prompt positions of each layer.")


def footprint(shape: BaseShape, settings: LlamaAdapter) -> Footprint:
    """A prompt and a gate a layer; keeps the scores of the second attention and what the gate multiplies."""
    if not shape.has("k", "v"):
        return Footprint(blocks={})
    return Footprint(
        blocks={BlockId("llama_adapter"): settings.length * shape.hidden + 1},
        saved=settings.length * shape.heads + shape.hidden,
        flops=4 * settings.length * shape.hidden,
    )


METHOD = Method(
    name="llama_adapter",
    section=LlamaAdapter,
    example=LlamaAdapter(length=4),
    footprint=footprint,
    row=MethodRow(
        title="LLaMA-Adapter",
        formula="mix(q, K, V) + g * softmax(q W_k P) W_v P",
        paper="Zhang 2023",
        attaches="attention of the adapted layers, before its output matrix; g begins at zero",
        summed=MEAN,
        example_dp=SHARED_PARAMETER,
        export="PEFT ADAPTION_PROMPT when alone on a decoder; else union.safetensors",
        served_by=("peft",),
    ),
    opacus=NO_EXAMPLES,
    export=Export(peft_type="ADAPTION_PROMPT", alone=("decoder",)),
)
