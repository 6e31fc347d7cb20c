"""[adapter.fish]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import KEEP, PICKED, inputs_of, largest, present
from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import Method, MethodRow, TrainingRounds
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import MEASURES
from fedpeft.catalogue.section import TargetName
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["METHOD", "Fish", "fish_picks"]

FISHER = BlockId("fish.fisher")


class Fish(MethodSection):
    """FISH mask (Sung 2021): round 1 sums Fisher information; then the weights that have most of it are trained."""

    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=PICKED)
    keep: float = Field(default=0.005, gt=0, lt=1, description=KEEP)


def fish_picks(settings: Fish, weights: int, layers: int) -> int:
    """How many of ``weights``, all those of ``layers`` like layers, FISH mask trains: the share of a layer, rounded.

    Example:
        >>> fish_picks(Fish(keep=0.005), weights=6 * 2 * 384 * 384, layers=6)
        8850
    """
    return layers * max(1, round(settings.keep * weights / max(1, layers)))


def due(settings: Fish, block_id: BlockId, round_id: int) -> bool:
    """Round 1 measures, the others train."""
    return (block_id == FISHER) == (round_id == 1)


def pick_weights(state: AdapterState, settings: Fish, round_id: int) -> AdapterState:
    """The places of the most Fisher information, by matrix and weight; the sum itself has done its work.

    Raises:
        RunFailed: nothing was summed.
    """
    if round_id != 1:
        return state
    block = state.spec[FISHER]
    fisher = state[FISHER]
    if not fisher.any():
        raise RunFailed(
            "Expected Fisher information from round 1, found none; let at least secagg.min_cohort organisations train "
            "fish."
        )
    ends = np.cumsum([tensor.size for tensor in block.tensors])
    picked = np.sort(largest(fisher, state[BlockId("fish")].size))
    matrix = np.searchsorted(ends, picked, side="right")
    weight = picked - np.concatenate([[0], ends])[matrix]
    places = np.concatenate([matrix, weight]).astype(np.float32)  # (2, k), exact below 2^24
    return state.replace({BlockId("fish.places"): places, FISHER: np.zeros_like(fisher)})


def findings(settings: Fish, rounds: TrainingRounds) -> Iterator[Finding]:
    """A run that would only measure."""
    if rounds.count < 2:
        yield Finding(
            key="adapter.fish",
            reads=("rounds.count",),
            expected="at least two rounds: the first one only measures",
            found=rounds.text,
        )


def footprint(shape: BaseShape, settings: Fish) -> Footprint:
    """A value and a place a picked weight, a measurement a weight; keeps the input and the dense change."""
    weights = sum(out * width for out, width in present(shape, settings.targets))
    picks = fish_picks(settings, weights, 1)
    return Footprint(
        blocks={BlockId("fish"): picks, BlockId("fish.fisher"): weights},
        frozen={BlockId("fish.places"): 2 * picks},
        kept=weights,
        saved=inputs_of(shape, settings.targets),
        flops=2 * weights,
    )


METHOD = Method(
    name="fish",
    section=Fish,
    example=Fish(keep=0.01),
    footprint=footprint,
    row=MethodRow(
        title="FISH mask: the weights of most Fisher information",
        formula="(W + D) x + b, D zero but at k picked places",
        paper="Sung 2021",
        attaches="k weights of the chosen matrices of the adapted layers, picked after round 1",
        summed="exact: the k values are the change; round 1 sums the Fisher information",
        example_dp="product of the matrix's input and its output's gradient at the picked places",
        export="union.safetensors only",
        served_by=(),
    ),
    opacus=MEASURES,
    measures=True,
    due=due,
    between_rounds=pick_weights,
    chooses=((BlockId("fish.places"), 1 << 24),),
    findings=findings,
)
