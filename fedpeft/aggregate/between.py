"""What the coordinator decides between two rounds, from the mean: pruning, masks. No torch.

A choice is not linear, so no device makes it and no secure sum carries it: each device sums what a choice rests on,
the coordinator makes it from the agreed state, and it travels as blocks like everything else. Pure: the same state
and round give the same next state, so a resumed run chooses as the killed one did. Post-processing of a sum: under
differential privacy it costs nothing.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState, flatten, unflatten
from fedpeft.aggregate.head_start import HEAD_BLOCK, classifier_of, measures_head, method_round
from fedpeft.config.adapter import Adapter
from fedpeft.config.reparameterized import AdaLora
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["adalora_budget", "between_rounds"]

_SHARPNESS = 50.0
"""A logit for each unit of cosine. Cross entropy alone would take 75 on BANKING77 and over 120 on the airline tweets; a
little less leaves the training that follows room (docs/adr/0009-class-means.md)."""
_GATE = np.float32(10.0)  # open or closed whatever noise a step would add
Rule = Callable[[AdapterState, Adapter, int], AdapterState]


def between_rounds(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """The state that round ``round_id + 1`` begins with.

    Args:
        state: after the mean of round ``round_id``.
        round_id: from 1.
    """
    if measures_head(state.spec, adapter, round_id):
        return _head_from_means(state)
    own = method_round(state.spec, adapter, round_id)
    for method, rule in _RULES.items():
        if getattr(adapter, method) is not None:
            state = rule(state, adapter, own)
    return state


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


def _head_from_means(state: AdapterState) -> AdapterState:
    """The head that the class means make: row c is ``k s (d_c - mean d)``, d_c the direction of its mean.

    What the devices summed has rows of about n_c / (n s) length, s that of a feature (``measure_class_means``), so
    their lengths add up to 1 / s: a logit is k times a difference of cosines, whatever the base and however many
    devices took part. Directions alone count, so a rare class is as likely as a common one; what is common to all
    classes goes. A class that nobody has keeps a row of zeros.

    Raises:
        RunFailed: nothing was summed.
    """
    block = state.spec[HEAD_BLOCK]
    tensors = {name: values.astype(np.float64) for name, values in unflatten(block, state[HEAD_BLOCK]).items()}
    name = classifier_of(block).name
    rows = tensors[name]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    seen = lengths[:, 0] > 0
    if not seen.any():
        raise RunFailed(
            "Expected class means from round 1, found none; let at least secagg.min_cohort organisations train the "
            'head, or use adapter.head_start = "seed".'
        )
    directions = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    directions[seen] -= directions[seen].mean(0)
    tensors[name] = _SHARPNESS * lengths.sum() * directions
    made = {name: values.astype(np.float32) for name, values in tensors.items()}
    return state.replace({HEAD_BLOCK: flatten(block, made)})


def _prune_triplets(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """AdaLoRA: zero l of all but the most important triplets; in the last round of the schedule, fix the mask."""
    settings = adapter.adalora
    if settings is None or not settings.warmup_rounds < round_id <= settings.prune_until:
        return state
    score = state[BlockId("adalora.score")]
    kept = np.zeros(score.size, np.float32)
    budget = adalora_budget(settings, score.size // settings.rank, round_id)
    kept[_largest(score, budget)] = 1.0
    block = state.spec[BlockId("adalora")]
    tensors = {name: values.copy() for name, values in unflatten(block, state[block.block_id]).items()}
    singular = [name for name in tensors if name.endswith(".values")]  # in the order of the score
    for name, own in zip(singular, kept.reshape(len(singular), settings.rank), strict=True):
        tensors[name] *= own
    changed = {block.block_id: flatten(block, tensors)}
    if round_id == settings.prune_until:
        changed[BlockId("adalora.mask")] = kept
    return state.replace(changed)


def _close_gates(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """Diff pruning: keep the largest changes, as far as their gates are open; open those gates, close all others."""
    settings = adapter.diffpruning
    if settings is None or round_id != settings.prune_round:
        return state
    change, gate = state[BlockId("diffpruning")], state[BlockId("diffpruning.gate")]
    share = np.clip(3.0 / (1.0 + np.exp(-gate.astype(np.float64))) - 1.5, 0.0, 1.0)
    effect = (share * change).astype(np.float32)
    kept = _largest(np.abs(effect), max(1, round(settings.keep * change.size)))
    closed, left = np.full(gate.size, -_GATE, np.float32), np.zeros(change.size, np.float32)
    closed[kept], left[kept] = _GATE, effect[kept]
    return state.replace({BlockId("diffpruning"): left, BlockId("diffpruning.gate"): closed})


def _pick_weights(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """FISH mask: the places of the most Fisher information, by matrix and weight; the sum itself has done its work.

    Raises:
        RunFailed: nothing was summed.
    """
    if round_id != 1:
        return state
    block = state.spec[BlockId("fish.fisher")]
    fisher = state[block.block_id]
    if not fisher.any():
        raise RunFailed(
            "Expected Fisher information from round 1, found none; let at least secagg.min_cohort organisations train "
            "fish."
        )
    ends = np.cumsum([tensor.size for tensor in block.tensors])
    picked = np.sort(_largest(fisher, state[BlockId("fish")].size))
    matrix = np.searchsorted(ends, picked, side="right")
    weight = picked - np.concatenate([[0], ends])[matrix]
    places = np.concatenate([matrix, weight]).astype(np.float32)  # (2, k), exact below 2^24
    return state.replace({BlockId("fish.places"): places, block.block_id: np.zeros_like(fisher)})


def _largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Where the ``count`` largest are; of equal ones the first, so that every machine chooses alike."""
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)


_RULES: Mapping[str, Rule] = MappingProxyType(
    {"adalora": _prune_triplets, "diffpruning": _close_gates, "fish": _pick_weights}
)
