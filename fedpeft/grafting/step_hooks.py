"""Parts that take part in training beyond their forward pass: a draw a step, a term of the loss, a measurement.

The training loop calls them in this order: ``begin_step``, forward, ``penalty``, backward, ``after_backward``, and
``finish`` once after the last step. Outside of it they are deterministic: evaluation between steps sees the same
adapter however often it is asked.
"""

from collections.abc import Sequence
from inspect import getattr_static
from typing import Self

from torch import Tensor, nn

__all__ = ["SteppedPart"]


class SteppedPart(nn.Module):
    """A part with a say in each training step; the methods do nothing unless a subclass says so."""

    @property
    def acts(self) -> bool:
        """Whether its hooks do something while it is trained; whoever calls none of them must not train it then."""
        hooks = ("begin_step", "penalty", "after_backward", "finish")
        return any(getattr_static(type(self), hook) is not vars(SteppedPart)[hook] for hook in hooks)

    def begin_step(self, seed: int, step: int) -> None:
        """Before the forward pass. Draws follow from ``seed`` (the device's) and ``step`` (of the run) alone."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss, a scalar; None where there is nothing."""
        return None

    def after_backward(self) -> None:
        """After the backward pass, before the gradient is clipped."""

    @classmethod
    def finish(cls, parts: Sequence[Self]) -> None:
        """After the last step of a round, in ``torch.no_grad``, with all parts of this kind in the model."""
