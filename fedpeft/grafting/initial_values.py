"""Initial values, drawn for one tensor from the run's seed: the same on every machine."""

import numpy as np
import torch
from torch import Tensor

from fedpeft.entropy import generator

__all__ = ["drawn"]


def drawn(seed: int, purpose: str, path: str, shape: tuple[int, ...], deviation: float, device: torch.device) -> Tensor:
    """Normal values around zero, float32.

    Args:
        seed: the run's.
        purpose, path: which tensor; equal arguments give equal values.
        deviation: of an entry.
    """
    values = generator(seed, purpose, path).standard_normal(shape) * deviation
    return torch.from_numpy(values.astype(np.float32)).to(device)
