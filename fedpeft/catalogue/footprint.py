"""What one method adds to one adapted layer, as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpeft.ids import BlockId

__all__ = ["Footprint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """One method in one adapted layer.

    Args:
        blocks: block id -> coordinates it has in a layer; those that a round may train.
        frozen: blocks that no round changes, likewise.
        shared: block id -> coordinates it has once, whatever the number of layers, beside those in ``blocks``.
        tokens: that the method adds to every example.
        kept: floats that autograd keeps when the method is trained, however many tokens there are.
        saved: floats a token that autograd keeps when the method is trained.
        saved_first_token: likewise in a last layer that computes one token only.
        flops: operations a token of the forward pass.
    """

    blocks: Mapping[BlockId, int]
    frozen: Mapping[BlockId, int] = field(default_factory=dict)
    shared: Mapping[BlockId, int] = field(default_factory=dict)
    tokens: int = 0
    kept: int = 0
    saved: int = 0
    saved_first_token: int = 0
    flops: int = 0
