"""LoRAHub (Huang et al. 2024): which mixture of trained adapters suits a new task, from a few of its examples.

    state(w) = start + sum_i w_i (state_i - start),    min over w of  loss(state(w)) + penalty * sum_i |w_i|

The adapters come from runs of one configuration and seed, so they share their start, and with LoRA its frozen A: the
sum of the states is the sum of their changes. No gradient: an evolution strategy of one parent and one child with
Rechenberg's rule of one fifth tries weights within [-1.5, 1.5], as the paper does with another such search. It begins
at the best of: the start, each adapter alone, their mean. So what it finds scores no worse on these examples than any.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import SpecMismatch
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.evaluate import evaluate

__all__ = ["Mixture", "find_mixture", "mixed", "search"]

Weights = npt.NDArray[np.float64]
BOUND = 1.5
_GROWTH = 1.5  # of the step after a success; a failure takes the fourth root of it back, so one in five keeps the size


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What a search found.

    Args:
        weights: one for each adapter.
        loss: mean loss of the mixture on the examples.
        single_losses: mean loss of the start, and of each adapter alone.
        tries: how many mixtures were evaluated.
    """

    weights: tuple[float, ...]
    loss: float
    single_losses: tuple[float, ...]
    tries: int


def find_mixture(
    union: UnionAdapter,
    start: AdapterState,
    states: Sequence[AdapterState],
    examples: EncodedDataset,
    *,
    draw: np.random.Generator,
    tries: int = 60,
    penalty: float = 0.05,
) -> Mixture:
    """Search the weights; afterwards ``union`` holds the mixture.

    Args:
        union: of the configuration that all states share.
        start: where their runs began.
        states: the trained adapters.
        examples: few, of the new task.
        tries: mixtures to evaluate, the beginnings included.
        penalty: of the sum of the weights' sizes.

    Raises:
        SpecMismatch: the states do not share a start.
    """
    losses: list[float] = []

    def score(weights: Weights) -> float:
        union.load(mixed(start, states, weights))
        measured = evaluate(union, examples, limit=0, batch_size=32)
        losses.append(measured.loss_sum / measured.examples)
        return losses[-1] + penalty * float(np.abs(weights).sum())

    count = len(states)
    beginnings = [np.zeros(count), *np.eye(count), np.full(count, 1.0 / count)]
    best = search(score, beginnings, draw=draw, tries=tries)
    singles, total = tuple(losses[: count + 1]), len(losses)
    union.load(mixed(start, states, best))
    measured = evaluate(union, examples, limit=0, batch_size=32)
    return Mixture(
        weights=tuple(float(weight) for weight in best),
        loss=measured.loss_sum / measured.examples,
        single_losses=singles,
        tries=total,
    )


def mixed(start: AdapterState, states: Sequence[AdapterState], weights: Weights) -> AdapterState:
    """The start and the weighted sum of what each state changed.

    Raises:
        SpecMismatch: a state has another specification, or another frozen block.
    """
    for state in states:
        if state.spec != start.spec:
            raise SpecMismatch("Expected adapters of one configuration and base, found different ones; mix such ones.")
        for block in start.spec.blocks:
            if not block.trainable and state.digests[block.block_id] != start.digests[block.block_id]:
                raise SpecMismatch(
                    f"Expected adapters that share {block.block_id}, found different ones; mix runs with one run.seed."
                )
    changed = {}
    for block in start.spec.blocks:
        if block.trainable:
            base = start[block.block_id].astype(np.float64)
            change = sum(w * (state[block.block_id] - base) for w, state in zip(weights, states, strict=True))
            changed[block.block_id] = np.asarray(base + change, np.float32)
    return start.replace(changed)


def search(
    score: Callable[[Weights], float], beginnings: Sequence[Weights], *, draw: np.random.Generator, tries: int
) -> Weights:
    """The weights of the lowest score that was found.

    Args:
        score: lower is better.
        beginnings: tried first.
        tries: calls of ``score`` in all, at least one for each beginning.
    """
    scored = [(score(weights), weights) for weights in beginnings]
    lowest, best = min(scored, key=lambda pair: pair[0])
    step = 0.3
    for _ in range(tries - len(beginnings)):
        child = np.clip(best + step * draw.standard_normal(best.shape), -BOUND, BOUND)
        found = score(child)
        if found < lowest:
            lowest, best = found, child
            step *= _GROWTH
        else:
            step /= _GROWTH**0.25
    return best
