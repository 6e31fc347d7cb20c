"""The loss of each row of outputs, by what stands beside it: one function for every task and every way of training.

| labels | loss of a row |
|---|---|
| (n,) int64 | cross entropy; ``IGNORED`` has none |
| (n,) float | squared error of the one output |
| (n, outputs) float | binary cross entropy, the mean over the outputs |

So the mean over the rows is what transformers' ``For*Classification`` computes under the same ``problem_type``
(tests/tuning/test_task_losses.py).
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.data.encode import IGNORED

__all__ = ["right_rows", "row_losses", "summed_loss"]


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) float32, each row's own.

    Args:
        logits: (n, outputs).
        labels: see the table.
    """
    if not labels.is_floating_point():
        return functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    if labels.dim() == 1:
        return (logits.float()[:, 0] - labels).square()
    return functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").mean(1)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of ``row_losses``."""
    if labels.is_floating_point():
        return row_losses(logits, labels).sum()
    return functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)


def right_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool: the largest output is the class, or every label is given that should be; a number is never right."""
    if not labels.is_floating_point():
        return logits.argmax(dim=-1) == labels
    if labels.dim() == 1:
        return torch.zeros_like(labels, dtype=torch.bool)
    return ((logits > 0) == (labels > 0)).all(1)
