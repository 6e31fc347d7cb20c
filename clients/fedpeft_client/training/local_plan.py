"""What [train] asks of one round's training loop."""

from collections.abc import Mapping

from fedpeft.config.model import Train
from fedpeft.ids import BlockId
from fedpeft.tuning import LocalPlan

__all__ = ["local_plan"]


def local_plan(
    plan: Train, rates: Mapping[BlockId, float], factor: float, *, micro_batch: int, checkpointing: bool
) -> LocalPlan:
    """The loop's own plan.

    Args:
        rates: of each block that is due, at their peak.
        factor: of the schedule over rounds, in [0, 1].
        micro_batch, checkpointing: how the device saves memory.
    """
    return LocalPlan(
        steps=plan.local_steps,
        batch_size=plan.batch_size,
        optimizer=plan.optimizer,
        learning_rates={block_id: rate * factor for block_id, rate in rates.items()},
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        proximal_mu=plan.proximal_mu,
    )
