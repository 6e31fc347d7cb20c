"""[adapter.lora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

import math
from typing import Literal

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import TARGETS, of_every_token, widths
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import RIGHT
from fedpeft.catalogue.rates import Placed, both_factors, low_rank
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Lora", "lora_tiers", "scale_of"]


class Lora(MethodSection):
    """LoRA (Hu 2021) as column tiers: a device of rank r trains the tiers up to r (docs/design.md, section 3)."""

    rank: int = Field(default=8, ge=1, le=1024, description="The full rank, of devices that can afford it.")
    tiers: tuple[int, ...] = Field(
        default=(),
        description="Ranks at which a device may stop, ascending, ending in `rank`; empty: powers of two from 2.",
    )
    targets: tuple[TargetName, ...] = Field(
        default=("auto",),
        description=TARGETS,
    )
    scale: float = Field(default=2.0, gt=0, description="The factor of B A, the same for every device.")
    scaling: Literal["fixed", "rslora"] = Field(
        default="fixed",
        description="`fixed`: dW = scale * B A. `rslora` (Kalajdzievski 2023): dW = scale / sqrt(rank) * B A, with the "
        "full rank, also on devices that train a lower tier.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a matrix's inputs that A does not see in a training step, drawn anew for each.",
    )
    init: Literal["orthonormal", "gaussian"] = Field(
        default="orthonormal", description="How the frozen A begins; B begins at zero."
    )
    start: Literal["drawn", "gradient"] = Field(
        default="drawn",
        description="`drawn`: A from the run's seed. `gradient`: round 1 trains nothing and sums a sketch of the "
        "gradient; A's rows are the input directions that the loss wants changed most. Not under privacy.",
    )
    train: Literal["B", "both"] = Field(
        default="B",
        description="`B`: A stays as it begins, so sums are exact for any mix of ranks. `both`: rounds may train A, "
        "as aggregate.rule says.",
    )
    carried_rank: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Columns of a carried adapter that devices apply and the coordinator alone changes, for rules that "
        "fold: aggregate.fold_every, flora, fedex.",
    )


def lora_tiers(lora: Lora) -> tuple[int, ...]:
    """The ranks at which a device may stop, ascending and ending in the full rank.

    Example:
        >>> lora_tiers(Lora(rank=8)), lora_tiers(Lora(rank=6)), lora_tiers(Lora(rank=1))
        ((2, 4, 8), (2, 4, 6), (1,))
    """
    if lora.tiers:
        return lora.tiers
    powers = [2**exponent for exponent in range(1, lora.rank.bit_length())]
    return (*(power for power in powers if power < lora.rank), lora.rank)


def scale_of(lora: Lora) -> float:
    """The factor of B A.

    Example:
        >>> scale_of(Lora(rank=16, scale=2.0)), scale_of(Lora(rank=16, scale=2.0, scaling="rslora"))
        (2.0, 0.5)
    """
    return lora.scale if lora.scaling == "fixed" else lora.scale / math.sqrt(lora.rank)


def footprint(shape: BaseShape, settings: Lora) -> Footprint:
    """Tiers of A (frozen) and B; keeps A x, (r,), of every target."""
    rank, passed = settings.rank, shape.passed(settings.targets)
    rows, columns = widths(shape, settings.targets)
    tiers = lora_tiers(settings)
    ranks = {end: end - start for start, end in zip((0, *tiers), tiers, strict=False)}
    return Footprint(
        blocks={BlockId(f"lora.B.t{end}"): own * rows for end, own in ranks.items()},
        frozen={BlockId(f"lora.A.t{end}"): own * columns for end, own in ranks.items()},
        saved=rank * len(passed),
        saved_first_token=rank * len(of_every_token(shape, settings.targets)),
        flops=2 * rank * sum(out + width for out, width in passed),
    )


def rate(settings: Lora, placed: Placed) -> float:
    """Of B; of A, where rounds train it."""
    of_factor = both_factors if placed.block.block_id.startswith("lora.A") else low_rank
    return of_factor(placed, rank=settings.rank, scale=scale_of(settings))


def due(settings: Lora, block_id: BlockId, round_id: int) -> bool:
    """A, which may be summed in a round of its own, is trained only where the run trains both."""
    return settings.train == "both" or not block_id.startswith("lora.A")


METHOD = Method(
    name="lora",
    section=Lora,
    example=Lora(rank=4),
    footprint=footprint,
    row=MethodRow(
        title="LoRA in column tiers, shared frozen A",
        formula="W x + b + scale * B A x",
        paper="Hu 2021; frozen A: Sun 2024 (FFA-LoRA)",
        attaches="chosen matrices (q, k, v, o, up, down, gate) of the adapted layers",
        summed="exact: A is shared and frozen, so the mean of B is the mean of dW over any mix of ranks",
        example_dp="outer product of (A x) and the output's gradient",
        export="PEFT LoRA of the full rank",
        served_by=("peft", "vLLM", "llama.cpp"),
    ),
    opacus=RIGHT,
    export=Export(peft_type="LORA", alone=BOTH),
    due=due,
    tiers=lora_tiers,
    rate=rate,
)
