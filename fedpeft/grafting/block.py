"""What a method hands back after it attached itself: its blocks as parameters of the model."""

from dataclasses import dataclass

from torch import nn

from fedpeft.ids import BlockId

__all__ = ["Block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of the union adapter, as parameters in wire order.

    Args:
        block_id: unique in the adapter.
        method: the method it belongs to.
        parameters: parameters of the model; float32 as the method makes them.
        trainable: False when no round changes them.
    """

    block_id: BlockId
    method: str
    parameters: tuple[nn.Parameter, ...]
    trainable: bool = True
