"""[adapter.prefix]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN, SHARED_PARAMETER
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import NO_EXAMPLES
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Prefix"]


class Prefix(MethodSection):
    """Prefix-tuning (Li and Liang 2021): keys and values before each layer's own, made by a trained network."""

    length: int = Field(default=16, ge=1, le=1024, description="Prefix positions of each layer.")
    width: int = Field(default=128, ge=1, le=8192, description="Of the network's inner layer.")


def footprint(shape: BaseShape, settings: Prefix) -> Footprint:
    """The trunk once, a matrix a layer; attention keeps its longer keys and values."""
    if not shape.has("k", "v"):
        return Footprint(blocks={})
    block, narrow, rows = BlockId("prefix"), settings.width, 2 * shape.key_width
    return Footprint(
        blocks={block: rows * (narrow + 1)},
        shared={block: shape.hidden * (settings.length + narrow) + narrow},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


METHOD = Method(
    name="prefix",
    section=Prefix,
    example=Prefix(length=4, width=8),
    footprint=footprint,
    row=MethodRow(
        title="Prefix-tuning",
        formula="softmax(q [K_p; K]) [V_p; V], [K_p, V_p] = O tanh(M E + m) + o",
        paper="Li 2021",
        attaches="attention of the adapted layers: keys and values before its own; E and M are shared",
        summed=MEAN,
        example_dp=SHARED_PARAMETER,
        export="PEFT PREFIX_TUNING when alone on all layers of a decoder; else union.safetensors",
        served_by=("peft",),
    ),
    opacus=NO_EXAMPLES,
    export=Export(peft_type="PREFIX_TUNING", alone=("decoder",)),
    switchable=False,
)
