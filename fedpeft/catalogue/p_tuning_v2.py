"""[adapter.p_tuning_v2]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import COPIES, MEAN
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.ids import BlockId

__all__ = ["METHOD", "PTuningV2"]


class PTuningV2(MethodSection):
    """P-tuning v2 (Liu 2022): keys and values before each layer's own, trained as they are."""

    length: int = Field(default=16, ge=1, le=1024, description="Prefix positions of each layer.")


def footprint(shape: BaseShape, settings: PTuningV2) -> Footprint:
    """Keys and values of a layer; attention keeps its longer keys and values."""
    if not shape.has("k", "v"):
        return Footprint(blocks={})
    rows = 2 * shape.key_width
    return Footprint(
        blocks={BlockId("p_tuning_v2"): settings.length * rows},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


METHOD = Method(
    name="p_tuning_v2",
    section=PTuningV2,
    example=PTuningV2(length=4),
    footprint=footprint,
    row=MethodRow(
        title="P-tuning v2",
        formula="softmax(q [K_p; K]) [V_p; V]",
        paper="Liu 2022",
        attaches="attention of the adapted layers: keys and values before its own",
        summed=MEAN,
        example_dp=COPIES,
        export="PEFT PREFIX_TUNING when alone on all layers of a decoder; else union.safetensors",
        served_by=("peft",),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="PREFIX_TUNING", alone=("decoder",)),
    switchable=False,
)
