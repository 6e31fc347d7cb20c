"""The class head's start: what an example of each class looks like to the base, measured instead of trained.

A head that starts at zero must be moved by every device's gradients, and with skewed labels these fight: a device
that lacks a class pushes its row away. A sum of features by class does not depend on who holds which class, so the
mean over all devices is that of the pooled data (Legate et al. 2023, "Guiding the Last Layer in Federated Learning
with Pre-Trained Models", section 3). In round 1 each device puts its part into the head's block; the secure sum adds
them up like any delta; the coordinator makes the head of the sum (``fedpeft.aggregate.between_rounds``).
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpeft.aggregate.head_start import HEAD_BLOCK, classifier_of
from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import DataInvalid
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.accelerator import products
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["class_rows", "classifier_weight", "measure_class_means"]


def classifier_weight(union: UnionAdapter) -> nn.Parameter:
    """The matrix with one row per class, (classes, hidden)."""
    return union.parameters(HEAD_BLOCK)[classifier_of(union.spec[HEAD_BLOCK]).name]


def measure_class_means(
    union: UnionAdapter,
    examples: EncodedDataset,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    cache: HiddenSource | None = None,
) -> int:
    """Set the classifier's rows to ``n_c mu_c / (n s^2)``, s the root mean square of ``|mu_c|`` over the examples.

    Here mu_c is the mean, over the n_c examples of class c, of what the classifier reads. Divided by s^2 the row is at
    most about 1 / s long, whatever the base: it fits the secure sum's range, and the lengths of all rows together
    (their sum is about 1 / s) tell the coordinator by how much to scale.

    Args:
        union: the model; its head is at its start, the rows at zero.
        examples: this device's.
        steps, batch_size, seed: of its training: what it would train on in this round is measured, each example once.
        cache: of these examples.

    Returns:
        How many examples were measured.

    Raises:
        DataInvalid: the base reads nothing from them: every feature is zero or one is not finite.
    """
    weight = classifier_weight(union)
    union.train_only([HEAD_BLOCK])
    split = SplitForward(union)
    counts = np.zeros(len(weight), np.float64)
    for indices in training_stream(examples, batch_size=batch_size, seed=seed).epoch(0)[:steps]:
        batch = collate(examples, indices, pad_id=split.pad_id, device=split.device)
        with products(split.device):
            logits, labels = logits_of(split, batch, cache)
        # The gradient of the sum of own-class logits is the sum of what the classifier read, by class: whatever
        # pooling the model has, and to the bit where the weight's own gradient would be taken.
        torch.autograd.backward([logits.float().gather(1, labels[:, None]).sum()])
        counts += np.bincount(labels.cpu().numpy(), minlength=len(counts))
    if weight.grad is None:
        raise DataInvalid("Expected a head that the model uses, found one without influence on the logits.")
    rows = class_rows(weight.grad.double().cpu().numpy(), counts)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(rows))
    union.train_only(())
    return int(counts.sum())


def class_rows(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``n_c mu_c / (n s^2)`` from the sums by class, (classes, hidden), and the numbers of examples, (classes,).

    Raises:
        DataInvalid: every feature is zero, or one is not finite.
    """
    seen = counts > 0
    square = float((np.square(sums[seen]).sum(1) / counts[seen]).sum() / counts.sum())
    if not 0.0 < square < float("inf"):
        raise DataInvalid(f"Expected features that tell something, found a mean square of {square}.")
    rows: npt.NDArray[np.float64] = sums / (counts.sum() * square)
    return rows
