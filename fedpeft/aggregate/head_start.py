"""When a run measures its class head instead of training it, and where in the head that goes. No torch.

With ``adapter.head_start = "class-means"`` round 1 trains nothing: devices sum class means into the head's block
(``fedpeft.tuning.class_means``), the coordinator makes the head of the sum (``fedpeft.aggregate.between_rounds``). With
``adapter.head_refresh`` later rounds do the same with the adapter as it has become, and no other round trains the head.
"""

import numpy as np

from fedpeft.adapter.spec import AdapterSpec, BlockSpec, TensorSpec, flatten, unflatten
from fedpeft.adapter.state import AdapterState
from fedpeft.config.adapter import Adapter
from fedpeft.ids import BlockId

__all__ = [
    "HEAD_BLOCK",
    "classifier_of",
    "freezes_head",
    "measures_head",
    "method_round",
    "with_unseen_rows",
    "without_means",
]

HEAD_BLOCK = BlockId("head")


def measures_head(spec: AdapterSpec, adapter: Adapter, round_id: int) -> bool:
    """Whether this round measures the head's class means and trains nothing.

    The first, where the run asks for it; with ``head_refresh = k`` rounds 1 + k, 1 + 2 k and so on, too.
    """
    every = adapter.refresh_every
    return _has_means(spec, adapter) and (round_id == 1 or (every > 0 and round_id % every == 1 % every))


def freezes_head(spec: AdapterSpec, adapter: Adapter) -> bool:
    """Whether no round trains the head: it is measured again instead."""
    return adapter.refresh_every > 0 and _has_means(spec, adapter)


def without_means(state: AdapterState) -> AdapterState:
    """The state with zeros for the classifier's rows: what a round of class means adds its sum to."""
    block = state.spec[HEAD_BLOCK]
    tensors = unflatten(block, state[HEAD_BLOCK])
    name = classifier_of(block).name
    return state.replace({HEAD_BLOCK: flatten(block, {**tensors, name: np.zeros_like(tensors[name])})})


def with_unseen_rows(before: AdapterState, after: AdapterState) -> AdapterState:
    """``after``, made of a later round's class means, with the rows of ``before`` for classes that nobody measured.

    Whoever holds a class alone may be absent in a round that measures: its row is then the one that was there.
    """
    block = after.spec[HEAD_BLOCK]
    name = classifier_of(block).name
    old, new = (unflatten(block, state[HEAD_BLOCK]) for state in (before, after))
    unseen = ~new[name].any(axis=1, keepdims=True)
    return after.replace({HEAD_BLOCK: flatten(block, {**new, name: np.where(unseen, old[name], new[name])})})


def method_round(spec: AdapterSpec, adapter: Adapter, round_id: int) -> int:
    """The round as the methods' own schedules count: those that train, up to this one; 0 while none has."""
    return round_id - (adapter.measuring_rounds(round_id) if _has_means(spec, adapter) else 0) - adapter.sketches


def classifier_of(head: BlockSpec) -> TensorSpec:
    """The head's matrix with one row per class: its last one; there may be dense layers before it."""
    return next(tensor for tensor in reversed(head.tensors) if len(tensor.shape) == 2)


def _has_means(spec: AdapterSpec, adapter: Adapter) -> bool:
    head = any(block.block_id == HEAD_BLOCK for block in spec.blocks)  # a language model has none
    return head and adapter.head_start == "class-means"
