"""Which blocks of a union adapter a device trains. No torch: the coordinator plans with it too.

LoRA's blocks are column tiers (docs/design.md, section 3): ``lora.B.t8`` holds the columns from the tier before it
up to rank 8, so a device of rank r trains every tier that ends at or below r.
"""

from collections.abc import Sequence

from fedpeft.adapter import AdapterSpec, BlockSpec
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.ids import BlockId

__all__ = ["HEAD", "LORA", "blocks_for", "carried_block", "tier_block", "tier_of"]

HEAD = "head"
LORA = "lora"


def tier_block(factor: str, tier: int) -> BlockId:
    """The id of a LoRA tier, e.g. ``lora.B.t8``; ``factor`` is A or B."""
    return BlockId(f"{LORA}.{factor}.t{tier}")


def carried_block(factor: str) -> BlockId:
    """The id of the carried columns of LoRA's A or B, which no device trains."""
    return BlockId(f"{LORA}.carried.{factor}")


def tier_of(block: BlockSpec) -> int | None:
    """The rank at which a LoRA tier ends; None for any other block."""
    tier = block.block_id.rpartition(".t")[2]
    return int(tier) if block.method == LORA and tier.isdigit() else None


def blocks_for(spec: AdapterSpec, *, methods: Sequence[str], rank: int | None, head: bool) -> tuple[BlockId, ...]:
    """The blocks that a device trains, in the specification's order.

    Args:
        spec: the run's union adapter.
        methods: the methods that the device can afford, of those in ``spec``.
        rank: for lora, a tier of it; None is the full rank.
        head: whether it trains the class head (where the model has one).

    Raises:
        ConfigInvalid: a method that the adapter does not have, a rank that is no tier, or nothing to train.

    Example:
        >>> from fedpeft.adapter import TensorSpec
        >>> tensor = TensorSpec(name="w", shape=(4,))
        >>> spec = AdapterSpec(blocks=(BlockSpec(block_id=BlockId("bitfit"), method="bitfit", tensors=(tensor,)),))
        >>> blocks_for(spec, methods=["bitfit"], rank=None, head=True)
        ('bitfit',)
    """
    available = sorted({block.method for block in spec.blocks if block.trainable} - {HEAD})
    tiers = sorted({tier for block in spec.blocks if block.trainable and (tier := tier_of(block)) is not None})
    problems = [
        Problem(
            where="methods",
            expected=f"methods of this adapter ({', '.join(available) or 'none'})",
            found=method,
            remedy=f"Add [adapter.{method}] to the run, or take it from the device.",
        )
        for method in methods
        if method not in available
    ]
    if rank is not None and LORA in methods and tiers and rank not in tiers:
        problems.append(
            Problem(
                where="rank",
                expected=f"a tier of adapter.lora ({', '.join(map(str, tiers))})",
                found=str(rank),
                remedy="Choose one of these ranks, or add the tier to adapter.lora.tiers.",
            )
        )
    chosen = tuple(block.block_id for block in spec.blocks if _trains(block, methods, rank, head))
    if not problems and not chosen:
        problems.append(Problem(where="methods", expected="at least one block to train", found="none"))
    if problems:
        raise ConfigInvalid("This device cannot train the methods that it is configured for.", problems=problems)
    return chosen


def _trains(block: BlockSpec, methods: Sequence[str], rank: int | None, head: bool) -> bool:
    if not block.trainable:
        return False
    if block.method == HEAD:
        return head
    tier = tier_of(block)
    return block.method in methods and (tier is None or rank is None or tier <= rank)
