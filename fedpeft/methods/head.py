"""The class head: every parameter that the task adds to the base, trained as it is.

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
        ConfigInvalid: class means are asked for, and the head has no matrix with one row per class.
    """
    if not adapter.head or not anatomy.head:
        return ()
    if adapter.head_start == "class-means":
        last = _last_linear(anatomy)
        with torch.no_grad():
            last.weight.zero_()
            if last.bias is not None:
                last.bias.zero_()
    return (Block(block_id=HEAD_BLOCK, method=HEAD, parameters=tuple(map(anatomy.model.get_parameter, anatomy.head))),)


def _last_linear(anatomy: Anatomy) -> nn.Linear:
    """The module that makes the logits: the one of the head's last matrix, in the order of its parameters."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name in anatomy.head)
    linear = [module for module in map(anatomy.model.get_submodule, paths) if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigInvalid(
            'Expected a head with a linear layer for adapter.head_start = "class-means", found '
            f'{", ".join(anatomy.head)}; use head_start = "seed".'
        )
    return linear[-1]
