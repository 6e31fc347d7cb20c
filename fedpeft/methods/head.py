"""The class head: every parameter of the model's own classifier, trained as it is.

The block holds values, not deltas: the head starts from the run's seed, not from a pretrained tensor, and
what leaves a device is a delta of the block either way.
"""

from fedpeft.config.model import Adapter
from fedpeft.ids import BlockId
from fedpeft.methods.anatomy import Anatomy
from fedpeft.methods.block import Block
from fedpeft.methods.blocks import HEAD

__all__ = ["attach_head"]


def attach_head(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """The classifier's parameters as one block; nothing on a language model."""
    if not adapter.head or anatomy.head is None:
        return ()
    parameters = tuple(anatomy.model.get_submodule(anatomy.head).parameters())
    return (Block(block_id=BlockId(HEAD), method=HEAD, parameters=parameters),)
