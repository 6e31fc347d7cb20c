"""The loss of a device whose labels are skewed: logits shifted by the log of its own class frequencies.

With plain cross entropy a device that never sees a class pushes that class's logit down in every step, and the mean
of such devices forgets. Adding log p(class) to the logits while training (logit adjustment, Menon 2021; between
clients: FedLC, Zhang 2022; FedRS, Li 2021, is the limit in which absent classes take no part) leaves a class that a
device lacks nearly alone. Nothing about the frequencies leaves the device.
"""

import numpy as np
import torch
from torch import Tensor

from fedpeft.data.encode import EncodedDataset

__all__ = ["label_offset"]


def label_offset(examples: EncodedDataset, classes: int, *, strength: float, smoothing: float = 1.0) -> Tensor | None:
    """What ``train`` adds to the logits.

    Args:
        examples: the device's training examples.
        classes: how many there are.
        strength: 0: nothing; 1: the full log frequency.
        smoothing: share of one example added to every class's count over ``classes``: bounds the shift of a class
            that the device lacks.

    Returns:
        (classes,) float32, at most 0; None when there is nothing to add.
    """
    labels = examples.labels
    if not strength or not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64) + smoothing / classes
    return torch.from_numpy((strength * np.log(counts / counts.max())).astype(np.float32))
