"""[adapter.diffpruning]: its settings, costs and documentation; the torch part is ``fedpeft.methods``."""

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
from fedpeft.ids import BlockId

__all__ = ["METHOD", "DiffPruning"]

GATE = BlockId("diffpruning.gate")
_OPEN = np.float32(10.0)  # open or closed whatever noise a step would add


class DiffPruning(MethodSection):
    """Diff pruning (Guo 2021): W + z * d with an L0-relaxed mask z; the coordinator fixes the mask at one round."""

    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=PICKED)
    keep: float = Field(default=0.005, gt=0, lt=1, description=KEEP)
    penalty: float = Field(default=1e-7, ge=0, description="Weight of the expected number of open gates in the loss.")
    prune_round: int = Field(default=4, ge=1, description="After this round the mask is fixed.")


def due(settings: DiffPruning, block_id: BlockId, round_id: int) -> bool:
    """The gates are trained until the mask is fixed."""
    return block_id != GATE or round_id <= settings.prune_round


def close_gates(state: AdapterState, settings: DiffPruning, round_id: int) -> AdapterState:
    """Keep the largest changes, as far as their gates are open; open those gates, close all others."""
    if round_id != settings.prune_round:
        return state
    change, gate = state[BlockId("diffpruning")], state[GATE]
    share = np.clip(3.0 / (1.0 + np.exp(-gate.astype(np.float64))) - 1.5, 0.0, 1.0)
    effect = (share * change).astype(np.float32)
    kept = largest(np.abs(effect), max(1, round(settings.keep * change.size)))
    closed, left = np.full(gate.size, -_OPEN, np.float32), np.zeros(change.size, np.float32)
    closed[kept], left[kept] = _OPEN, effect[kept]
    return state.replace({BlockId("diffpruning"): left, GATE: closed})


def findings(settings: DiffPruning, rounds: TrainingRounds) -> Iterator[Finding]:
    """A mask that is fixed too late to be trained."""
    if settings.prune_round >= rounds.count:
        yield Finding(
            key="adapter.diffpruning.prune_round",
            reads=("rounds.count",),
            expected=f"below {rounds.text}, so that the mask is fixed and then trained",
            found=str(settings.prune_round),
        )


def footprint(shape: BaseShape, settings: DiffPruning) -> Footprint:
    """A change and a gate a weight; keeps the input of every target, and four matrices of its size on the way to it."""
    weights = sum(out * width for out, width in present(shape, settings.targets))
    return Footprint(
        blocks={BlockId("diffpruning"): weights, BlockId("diffpruning.gate"): weights},
        kept=4 * weights,
        saved=inputs_of(shape, settings.targets),
        flops=2 * weights,
    )


METHOD = Method(
    name="diffpruning",
    section=DiffPruning,
    example=DiffPruning(prune_round=3),
    footprint=footprint,
    row=MethodRow(
        title="Diff pruning: an L0-relaxed mask",
        formula="(W + z * d) x + b, z a stretched sigmoid gate in [0, 1]",
        paper="Guo 2021; gates: Louizos 2018",
        attaches="every weight of the chosen matrices of the adapted layers",
        summed="the mean of d and of the gates' logits; the coordinator fixes the mask after one round",
        example_dp="outer product of the matrix's input and its output's gradient, times the gate",
        export="union.safetensors only",
        served_by=(),
    ),
    opacus=MEASURES,
    measures=True,
    counts_rounds=True,
    due=due,
    between_rounds=close_gates,
    findings=findings,
)
