"""Which blocks are trained in which round, for methods that do not train all of theirs all the time. No torch.

Coordinator and devices compute it alike from the run's adapter and the round; what is not due is offered to no sum.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedpeft.adapter import AdapterSpec
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head, method_round
from fedpeft.config.model import Adapter
from fedpeft.ids import BlockId

__all__ = ["due_blocks", "relora_block", "round_of"]

ADALORA_SCORE = BlockId("adalora.score")
DIFF_GATE = BlockId("diffpruning.gate")
FISH_FISHER = BlockId("fish.fisher")

Rule = Callable[[Adapter, BlockId, int], bool]


def due_blocks(spec: AdapterSpec, adapter: Adapter, round_id: int) -> frozenset[BlockId]:
    """The trainable blocks that a round may train.

    Args:
        spec: the run's union adapter.
        round_id: from 1.
    """
    if measures_head(spec, adapter, round_id):
        return frozenset({HEAD_BLOCK})
    own = method_round(spec, adapter, round_id)
    return frozenset(
        block.block_id
        for block in spec.blocks
        if block.trainable and (block.method not in _RULES or _RULES[block.method](adapter, block.block_id, own))
    )


def round_of(first_step: int, local_steps: int) -> int:
    """The round, from 1, whose training begins at this step of the run."""
    return first_step // local_steps + 1


def relora_block(factor: str, cycle: int) -> BlockId:
    """The id of one cycle's factor, cycles counted from 1."""
    return BlockId(f"relora.{factor}.c{cycle}")


def _relora(adapter: Adapter, block_id: BlockId, round_id: int) -> bool:
    """One cycle at a time; the last goes on to the end."""
    relora = adapter.relora
    if relora is None:
        return False
    return block_id == relora_block("B", min(relora.cycles, (round_id - 1) // relora.rounds_each + 1))


def _adalora(adapter: Adapter, block_id: BlockId, round_id: int) -> bool:
    """The score is measured until the choice is final."""
    settings = adapter.adalora
    return settings is not None and (block_id != ADALORA_SCORE or round_id <= settings.prune_until)


def _diffpruning(adapter: Adapter, block_id: BlockId, round_id: int) -> bool:
    """The gates are trained until the mask is fixed."""
    settings = adapter.diffpruning
    return settings is not None and (block_id != DIFF_GATE or round_id <= settings.prune_round)


def _fish(adapter: Adapter, block_id: BlockId, round_id: int) -> bool:
    """Round 1 measures, the others train."""
    return (block_id == FISH_FISHER) == (round_id == 1)


_RULES: Mapping[str, Rule] = MappingProxyType(
    {"adalora": _adalora, "relora": _relora, "diffpruning": _diffpruning, "fish": _fish}
)
"""By method; a method without a rule trains all its blocks in every round."""
