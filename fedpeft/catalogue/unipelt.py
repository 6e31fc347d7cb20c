"""[adapter.unipelt]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import BETWEEN, MEAN, OWN_FILE, SHARED_FACTORS, WIDTH, Activation, network
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import NO_EXAMPLES
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Unipelt"]


class Unipelt(MethodSection):
    """UniPELT (Mao 2022): LoRA on q and v, a prefix, and a bottleneck after the feed-forward, each behind a gate."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of LoRA.")
    scale: float = Field(default=1.0, gt=0, description="The factor of B A before its gate.")
    length: int = Field(default=10, ge=1, le=1024, description="Prefix positions of each layer.")
    width: int = Field(default=16, ge=1, le=8192, description=WIDTH)
    activation: Activation = Field(default="relu", description=BETWEEN)


def footprint(shape: BaseShape, settings: Unipelt) -> Footprint:
    """LoRA of q and v, a prefix, a bottleneck and four gates."""
    if not shape.has("q", "k", "v", "down"):
        return Footprint(blocks={})
    (query, wide), value = shape.matrices(("q",))[0], shape.key_width
    rank, narrow = settings.rank, settings.width
    lora = rank * (2 * wide + query + value)
    size = lora + 2 * settings.length * value + network(shape, narrow) + 4 * (wide + 1)
    inner = narrow if settings.activation == "relu" else 2 * narrow
    attention = 6 * query  # attention of twice the width keeps wider queries, keys and values of every head
    return Footprint(
        blocks={BlockId("unipelt"): size},
        saved=2 * rank + query + value + attention + query + 2 * wide + inner,
        saved_first_token=rank + value + 4 * value,
        flops=2 * lora + 4 * wide * narrow + 8 * settings.length * wide,
    )


METHOD = Method(
    name="unipelt",
    section=Unipelt,
    example=Unipelt(rank=2, length=4, width=4),
    footprint=footprint,
    row=MethodRow(
        title="UniPELT",
        formula="LoRA on q and v, prefix, bottleneck, each times sigmoid(w x + b)",
        paper="Mao 2022",
        attaches="q, v, attention and the feed-forward's output of the adapted layers; a gate a token",
        summed=MEAN,
        example_dp=SHARED_FACTORS,
        export=OWN_FILE,
        served_by=(),
    ),
    opacus=NO_EXAMPLES,
    switchable=False,
)
