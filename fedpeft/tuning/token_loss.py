"""A language model's loss without its logits.

Logits are the widest thing a small language model computes: 1,024 labelled tokens over 49,152 words are 192 MiB, and
cross entropy makes two more tensors of that size. A frozen output matrix needs none of them kept: for some tokens at a
time the logits are made, turned into the loss and into the gradient of the states below, and dropped.

    loss_t = logsumexp(W h_t + b) - (W h_t + b)[label_t],    dloss_t/dh_t = W^T (softmax - onehot)

Exact: the same sums, of which those over the vocabulary are in the same order. A packed matrix is unpacked once
per step instead of twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.base.residency import QuantizedLinear

__all__ = ["CHUNK_BYTES", "OutputMatrix", "output_withheld"]

CHUNK_BYTES = 16 * 2**20
"""Of the logits that exist at once: 85 tokens over 49,152 words, enough rows for a product at full speed."""


class OutputMatrix(nn.Module):
    """Stands for a model's output matrix and hands on the hidden states instead of logits.

    Args:
        output: the frozen matrix, (vocabulary, h).
    """

    def __init__(self, output: nn.Linear) -> None:
        super().__init__()
        self.output = output
        self._given: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """The states, unchanged."""
        self._given = states
        return states

    def was_last(self, result: Tensor) -> bool:
        """Whether ``result`` is what ``forward`` just returned: some models scale or cap their logits afterwards."""
        given, self._given = self._given, None
        return result is given

    def logits(self, states: Tensor) -> Tensor:
        """(n, h) -> (n, vocabulary)."""
        return cast("Tensor", self.output(states))

    def loss(self, states: Tensor, labels: Tensor, *, count: int) -> Tensor:
        """Cross entropy summed over the tokens and divided by ``count``.

        Args:
            states: (n, h), what the matrix is applied to.
            labels: (n,) int64, rows of the matrix.
            count: of the tokens of the whole step.
        """
        return self.losses(states, labels).sum() / count

    def losses(self, states: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each token, (n,) float32; as ``loss``."""
        each: Tensor = _TokenLosses.apply(states, self.output, labels)  # type: ignore[no-untyped-call]
        return each


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, output: nn.Linear, labels: Tensor) -> Tensor:
        weight, bias = output.weight, output.bias  # unpacked here, once
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        gradient = torch.empty_like(states)
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), rows):
            chunk = slice(start, start + rows)
            logits = functional.linear(states[chunk], weight, bias).float()  # (rows, vocabulary)
            largest = logits.amax(dim=-1, keepdim=True)
            own = logits.gather(1, labels[chunk, None])
            # In place from here on: a second tensor of this size would be felt.
            powers = logits.sub_(largest).exp_()
            whole = powers.sum(dim=-1, keepdim=True)
            losses[chunk] = (largest + whole.log() - own)[:, 0]
            probabilities = powers.div_(whole)
            probabilities.scatter_add_(1, labels[chunk, None], torch.full_like(own, -1.0))
            gradient[chunk] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None].to(gradient.dtype), None, None


@contextmanager
def output_withheld(model: nn.Module) -> Iterator[OutputMatrix | None]:
    """Inside, ``model``'s output matrix is an ``OutputMatrix``: ``SplitForward`` made here keep it. None where it
    cannot be.

    It cannot where there is none (a classifier), where it is trained, where it is no plain linear layer, or where
    something as wide as the vocabulary is added behind it (BART's kin).
    """
    found = cast("object", model.get_output_embeddings()) if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if not isinstance(found, nn.Linear) or not _is_plain(found) or hasattr(model, "final_logits_bias"):
        yield None
        return
    withheld = OutputMatrix(found)
    model.set_output_embeddings(withheld)  # type: ignore[operator]
    try:
        yield withheld
    finally:
        model.set_output_embeddings(found)  # type: ignore[operator]


def _is_plain(output: nn.Linear) -> bool:
    """Whether the layer is frozen and computes its product and nothing else."""
    hooked = bool(output._forward_hooks or output._forward_pre_hooks)
    trained = any(parameter.requires_grad for parameter in output.parameters())
    return type(output) in (nn.Linear, QuantizedLinear) and not hooked and not trained
