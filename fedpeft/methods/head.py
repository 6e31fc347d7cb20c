"""The class head: every parameter of the model's own classifier, trained as it is.

The block holds values, not deltas: the head starts from the run's seed or, with ``adapter.head_start =
"class-means"``, at zero and then from what round 1 measures (``fedpeft.tuning.class_means``), not from a pretrained
tensor; what leaves a device is a delta of the block either way.
"""

import torch
from torch import nn

from fedpeft.aggregate.head_start import HEAD_BLOCK
from fedpeft.catalogue.blocks import HEAD
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block

__all__ = ["attach_head"]


def attach_head(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """The classifier's parameters as one block; nothing on a language model.

    Raises:
        ConfigInvalid: class means are asked for, and the head has no matrix with one row a class.
    """
    if not adapter.head or anatomy.head is None:
        return ()
    head = anatomy.model.get_submodule(anatomy.head)
    if adapter.head_start == "class-means":
        last = _last_linear(head)
        with torch.no_grad():
            last.weight.zero_()
            if last.bias is not None:
                last.bias.zero_()
    return (Block(block_id=HEAD_BLOCK, method=HEAD, parameters=tuple(head.parameters())),)


def _last_linear(head: nn.Module) -> nn.Linear:
    """The module that makes the logits: the one of the head's last matrix, in the order of its parameters."""
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigInvalid(
            f'Expected a head with a linear layer for adapter.head_start = "class-means", found {type(head).__name__}; '
            'use head_start = "seed".'
        )
    return linear[-1]
