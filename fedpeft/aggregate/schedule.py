"""Which blocks are trained in which round, for methods that do not train all of theirs all the time. No torch.

Coordinator and devices compute it alike from the run's adapter and the round; what is not due is offered to no sum.
"""

from fedpeft.adapter import AdapterSpec, BlockSpec
from fedpeft.aggregate.gradient_start import sketched_blocks, sketches
from fedpeft.aggregate.head_start import HEAD_BLOCK, freezes_head, measures_head, method_round
from fedpeft.catalogue import BY_NAME
from fedpeft.catalogue.section import Section
from fedpeft.config.model import Adapter
from fedpeft.ids import BlockId

__all__ = ["due_blocks", "measured_blocks", "round_of"]


def due_blocks(spec: AdapterSpec, adapter: Adapter, round_id: int) -> frozenset[BlockId]:
    """The trainable blocks that a round may train.

    Args:
        spec: the run's union adapter.
        round_id: from 1.
    """
    if measured := measured_blocks(spec, adapter, round_id):
        return measured
    own = method_round(spec, adapter, round_id)
    settings = {method.name: settings for method, settings in adapter.declared()}
    frozen = {HEAD_BLOCK} if freezes_head(spec, adapter) else set()
    return frozenset(
        block.block_id
        for block in spec.blocks
        if block.trainable and block.block_id not in frozen and _is_due(block, settings.get(block.method), own)
    )


def measured_blocks(spec: AdapterSpec, adapter: Adapter, round_id: int) -> frozenset[BlockId]:
    """What a round measures, in which case it trains nothing: the head's class means, or a sketch for A."""
    if measures_head(spec, adapter, round_id):
        return frozenset({HEAD_BLOCK})
    return sketched_blocks(spec) if sketches(adapter, round_id) else frozenset()


def round_of(first_step: int, local_steps: int) -> int:
    """The round, from 1, whose training begins at this step of the run."""
    return first_step // local_steps + 1


def _is_due(block: BlockSpec, settings: Section | None, round_id: int) -> bool:
    """As the block's method says; the class head, which has no settings, is due in every round."""
    due = BY_NAME[block.method].due if block.method in BY_NAME else None
    return due is None or (settings is not None and due(settings, block.block_id, round_id))
