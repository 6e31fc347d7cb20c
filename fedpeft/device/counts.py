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
    shared: Mapping[BlockId, int] = field(default_factory=dict)
    tokens: int = 0
