"""[adapter.relora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from collections.abc import Iterator

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import SCALE, TARGETS, of_every_token, present, widths
from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow, TrainingRounds
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.catalogue.rates import Placed, low_rank
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "ReLora", "relora_block"]


class ReLora(MethodSection):
    """ReLoRA (Lialin 2024) in blocks: every few rounds a fresh A and B; the changes add up to rank * cycles."""

    rank: int = Field(default=4, ge=1, le=1024, description="Of one cycle.")
    cycles: int = Field(default=4, ge=1, le=256, description="How many there are; the last goes on to the end.")
    rounds_each: int = Field(default=2, ge=1, description="Rounds a cycle lasts.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description=SCALE)


def relora_block(factor: str, cycle: int) -> BlockId:
    """The id of one cycle's factor, cycles counted from 1."""
    return BlockId(f"relora.{factor}.c{cycle}")


def due(settings: ReLora, block_id: BlockId, round_id: int) -> bool:
    """One cycle at a time; the last goes on to the end."""
    return block_id == relora_block("B", min(settings.cycles, (round_id - 1) // settings.rounds_each + 1))


def findings(settings: ReLora, rounds: TrainingRounds) -> Iterator[Finding]:
    """Cycles that never begin."""
    if settings.rounds_each * (settings.cycles - 1) >= rounds.count:
        yield Finding(
            key="adapter.relora.cycles",
            reads=("adapter.relora.rounds_each", "rounds.count"),
            expected=f"cycles that begin within {rounds.text} when each lasts {settings.rounds_each}",
            found=str(settings.cycles),
            remedy="Fewer or shorter cycles; one that never begins would still be sent and kept.",
        )


def footprint(shape: BaseShape, settings: ReLora) -> Footprint:
    """A frozen and B trained, cycle by cycle; keeps A x of all cycles."""
    rows, columns = widths(shape, settings.targets)
    cycles, whole = range(1, settings.cycles + 1), settings.rank * settings.cycles
    return Footprint(
        blocks={relora_block("B", cycle): settings.rank * rows for cycle in cycles},
        frozen={relora_block("A", cycle): settings.rank * columns for cycle in cycles},
        saved=whole * len(present(shape, settings.targets)),
        saved_first_token=whole * len(of_every_token(shape, settings.targets)),
        flops=2 * whole * (rows + columns),
    )


def rate(settings: ReLora, placed: Placed) -> float:
    """As LoRA's B over a frozen A."""
    return low_rank(placed, rank=settings.rank, scale=settings.scale)


METHOD = Method(
    name="relora",
    section=ReLora,
    example=ReLora(rank=2, cycles=2, rounds_each=2),
    footprint=footprint,
    row=MethodRow(
        title="ReLoRA: low-rank changes that add up",
        formula="W x + b + scale * (B_1 A_1 + ... + B_n A_n) x, one B_i a cycle",
        paper="Lialin 2024",
        attaches="chosen matrices of the adapted layers",
        summed="exact: every A is shared and frozen, earlier products stand",
        example_dp="outer product of (A_i x) and the output's gradient",
        export="PEFT LoRA of rank n r",
        served_by=("peft", "vLLM", "llama.cpp"),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="LORA", alone=BOTH),
    counts_rounds=True,
    due=due,
    findings=findings,
    rate=rate,
)
