"""States that a coordinator might send to make a gradient as long as it can."""

import torch

from fedpeft.methods.union import UnionAdapter

__all__ = ["hostile"]


def hostile(union: UnionAdapter, scale: float) -> dict[str, torch.nn.Parameter]:
    """The trained parameters, at values of this scale; those of the head small, so that no loss saturates."""
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    union.train_only(blocks)
    draw, trained = torch.Generator().manual_seed(1), {}
    for block in blocks:
        own = min(scale, 0.1) if block.startswith("head") else scale
        for name, parameter in union.parameters(block).items():
            trained[name] = parameter
            with torch.no_grad():
                parameter.copy_(own * torch.randn(parameter.shape, generator=draw))
    return trained
