"""What tests and benchmarks train: blocks and a local plan in one line."""

from collections.abc import Iterable
from typing import Any

from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter
from fedpeft.tuning import LocalPlan

__all__ = ["plan_for", "trainable"]


def plan_for(blocks: Iterable[BlockId], *, steps: int, rate: float, **changes: Any) -> LocalPlan:
    """AdamW without decay on batches of 8, all blocks at one rate.

    Args:
        blocks: to train.
        changes: other fields of ``LocalPlan``.
    """
    settings: dict[str, Any] = {"batch_size": 8, "optimizer": "adamw", "weight_decay": 0.0, "max_grad_norm": 1.0}
    return LocalPlan(steps=steps, learning_rates=dict.fromkeys(blocks, rate), **(settings | changes))


def trainable(union: UnionAdapter) -> list[BlockId]:
    """Every block of the adapter that a device may train, in the specification's order."""
    return [block.block_id for block in union.spec.blocks if block.trainable]
