"""[adapter.adalora]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

import math
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from fedpeft.adapter import AdapterState, flatten, unflatten
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import TARGETS, inputs_of, largest, of_every_token, present, widths
from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow, TrainingRounds
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import MEASURES
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "AdaLora", "adalora_budget"]

SCORE = BlockId("adalora.score")


class AdaLora(MethodSection):
    """AdaLoRA (Zhang 2023): W + scale * P diag(l) Q; the coordinator prunes the least important l over the rounds."""

    rank: int = Field(default=12, ge=1, le=1024, description="Triplets a matrix at the start.")
    target_rank: int = Field(default=8, ge=1, le=1024, description="Triplets a matrix at the end, on average.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description="The factor of P diag(l) Q.")
    orthogonality: float = Field(
        default=0.1, ge=0, description="Weight of |P^T P - I|^2 + |Q Q^T - I|^2 in the loss (the paper's gamma)."
    )
    warmup_rounds: int = Field(default=1, ge=0, description="Rounds before anything is pruned.")
    prune_until: int = Field(
        default=4, ge=1, description="The budget falls, cubically, up to this round; then the choice is final."
    )


def due(settings: AdaLora, block_id: BlockId, round_id: int) -> bool:
    """The score is measured until the choice is final."""
    return block_id != SCORE or round_id <= settings.prune_until


def adalora_budget(settings: AdaLora, matrices: int, round_id: int) -> int:
    """How many triplets are left after a round: all, then cubically fewer, then the target (Zhang 2023, section 3.3).

    Example:
        >>> settings = AdaLora(rank=4, target_rank=2, warmup_rounds=1, prune_until=3)
        >>> [adalora_budget(settings, 10, round_id) for round_id in (1, 2, 3, 4)]
        [40, 22, 20, 20]
    """
    first, last = settings.rank * matrices, min(settings.rank, settings.target_rank) * matrices
    span = max(1, settings.prune_until - settings.warmup_rounds)
    left = min(1.0, max(0.0, 1.0 - (round_id - settings.warmup_rounds) / span))
    return math.floor(last + (first - last) * left**3)


def prune_triplets(state: AdapterState, settings: AdaLora, round_id: int) -> AdapterState:
    """Zero l of all but the most important triplets; in the last round of the schedule, fix the mask."""
    if not settings.warmup_rounds < round_id <= settings.prune_until:
        return state
    score = state[SCORE]
    kept = np.zeros(score.size, np.float32)
    budget = adalora_budget(settings, score.size // settings.rank, round_id)
    kept[largest(score, budget)] = 1.0
    block = state.spec[BlockId("adalora")]
    tensors = {name: values.copy() for name, values in unflatten(block, state[block.block_id]).items()}
    singular = [name for name in tensors if name.endswith(".values")]  # in the order of the score
    for name, own in zip(singular, kept.reshape(len(singular), settings.rank), strict=True):
        tensors[name] *= own
    changed = {block.block_id: flatten(block, tensors)}
    if round_id == settings.prune_until:
        changed[BlockId("adalora.mask")] = kept
    return state.replace(changed)


def findings(settings: AdaLora, rounds: TrainingRounds) -> Iterator[Finding]:
    """A target above the rank, and a budget that has not fallen before the run is over."""
    if settings.target_rank > settings.rank:
        yield Finding(
            key="adapter.adalora.target_rank",
            reads=("adapter.adalora.rank",),
            expected=f"at most adapter.adalora.rank={settings.rank}",
            found=str(settings.target_rank),
        )
    if not settings.warmup_rounds < settings.prune_until < rounds.count:
        yield Finding(
            key="adapter.adalora.prune_until",
            reads=("adapter.adalora.warmup_rounds", "rounds.count"),
            expected=f"above warmup_rounds={settings.warmup_rounds} and below {rounds.text}",
            found=str(settings.prune_until),
            remedy="What is left must be trained at least one round after the last pruning.",
        )


def footprint(shape: BaseShape, settings: AdaLora) -> Footprint:
    """P, l, Q and a score a triplet; the mask frozen. Keeps the input, Q x and l Q x of every target."""
    rows, columns = widths(shape, settings.targets)
    rank, count = settings.rank, len(present(shape, settings.targets))
    first = len(of_every_token(shape, settings.targets))
    return Footprint(
        blocks={
            BlockId("adalora"): rank * (rows + columns + count),
            BlockId("adalora.score"): rank * count,
        },
        frozen={BlockId("adalora.mask"): rank * count},
        saved=2 * rank * count + inputs_of(shape, settings.targets),
        saved_first_token=2 * rank * first,
        flops=2 * rank * (rows + columns),
    )


METHOD = Method(
    name="adalora",
    section=AdaLora,
    example=AdaLora(rank=4, target_rank=2, warmup_rounds=1, prune_until=3),
    footprint=footprint,
    row=MethodRow(
        title="AdaLoRA: SVD form, pruned by importance",
        formula="W x + b + scale * P diag(l * mask) Q x",
        paper="Zhang 2023",
        attaches="chosen matrices of the adapted layers",
        summed="the mean of P, l and Q; importance is averaged in a block of its own, the coordinator prunes by it",
        example_dp="outer products of each factor's input and its output's gradient; importance is not per example",
        export="PEFT LoRA of the highest rank, l in B",
        served_by=("peft", "vLLM", "llama.cpp"),
    ),
    opacus=MEASURES,
    export=Export(peft_type="LORA", alone=BOTH),
    measures=True,
    counts_rounds=True,
    due=due,
    between_rounds=prune_triplets,
    chooses=((BlockId("adalora.mask"), 1),),
    findings=findings,
)
