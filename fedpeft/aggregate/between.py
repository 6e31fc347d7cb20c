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
from fedpeft.config.adapter import Adapter
from fedpeft.config.reparameterized import AdaLora
from fedpeft.ids import BlockId

__all__ = ["adalora_budget", "between_rounds"]

Vector = npt.NDArray[np.float32]
Rule = Callable[[AdapterState, Adapter, int], AdapterState]


def between_rounds(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """The state that round ``round_id + 1`` begins with.

    Args:
        state: after the mean of round ``round_id``.
        round_id: from 1.
    """
    for method, rule in _RULES.items():
        if getattr(adapter, method) is not None:
            state = rule(state, adapter, round_id)
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


def _prune_triplets(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """AdaLoRA: zero l of all but the most important triplets; in the last round of the schedule, fix the mask."""
    settings = adapter.adalora
    if settings is None or not settings.warmup_rounds < round_id <= settings.prune_until:
        return state
    score = state[BlockId("adalora.score")]
    kept = np.zeros(score.size, np.float32)
    budget = adalora_budget(settings, score.size // settings.rank, round_id)
    kept[np.argsort(-score, kind="stable")[:budget]] = 1.0
    block = state.spec[BlockId("adalora")]
    tensors = {name: values.copy() for name, values in unflatten(block, state[block.block_id]).items()}
    singular = [name for name in tensors if name.endswith(".values")]  # in the order of the score
    for name, own in zip(singular, kept.reshape(len(singular), settings.rank), strict=True):
        tensors[name] *= own
    changed = {block.block_id: flatten(block, tensors)}
    if round_id == settings.prune_until:
        changed[BlockId("adalora.mask")] = kept
    return state.replace(changed)


_RULES: Mapping[str, Rule] = MappingProxyType({"adalora": _prune_triplets})
