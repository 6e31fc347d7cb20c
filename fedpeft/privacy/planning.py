"""What a noise multiplier leaves of the signal, method by method: for a person who chooses one."""

import math
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SIZES", "expected_noise", "signal_to_noise", "step_signal_to_noise"]

SIZES: Mapping[str, int] = MappingProxyType(
    {
        "head only": 384 * 3 + 3,
        "ia3 + head": 6 * (384 + 384 + 1536) + 1155,
        "lora r4 (B only, q and v) + head": 6 * 2 * 4 * 384 + 1155,
        "bitfit + head": 6 * (4 * 384 + 1536 + 384 + 2 * 384) + 1155,
        "lora r8 (B only, q and v) + head": 6 * 2 * 8 * 384 + 1155,
    }
)
"""Trained coordinates on MiniLM-L6 (6 layers, width 384, MLP 1536) with three classes; A of LoRA is frozen."""


def signal_to_noise(clients: int, noise_multiplier: float, parameters: int) -> float:
    """n / (z sqrt(d)): norm of a sum of n aligned deltas of norm C, over that of the least noise.

    Real deltas are not aligned, so this is the best case; below about 0.3 a round learns next to nothing.

    Example:
        >>> round(signal_to_noise(100, 1.0, 36_864), 2)
        0.52
    """
    return clients / (noise_multiplier * math.sqrt(parameters))


def step_signal_to_noise(batch: float, noise_multiplier: float, parameters: int, *, devices: int = 1) -> float:
    """B sqrt(n) / (z sqrt(d)): a step of DP-SGD, averaged over n devices that each add noise of their own.

    Norm of the sum of n B aligned gradients of norm C, over that of n independent noises of z C.

    Example:
        >>> round(step_signal_to_noise(128, 1.18, 1155), 1)
        3.2
    """
    return batch * math.sqrt(devices) / (noise_multiplier * math.sqrt(parameters))


def expected_noise(survivors: int, threshold: int, colluders: int) -> float:
    """How many times the promised noise a sum of so many survivors holds: every share counts."""
    return math.sqrt(survivors / (threshold - colluders))
