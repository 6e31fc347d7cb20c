"""The audit of DP-SGD: canary examples through the code of a private step, from the sample to the noisy sum.

A canary's gradient points where no other does, and is much longer than the clip norm: the worst example that a
person could hold. The attacker sees every noisy sum of the run, as whoever sees each update could. Model and optimizer
are left out: they only hide something from the attacker.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedpeft.entropy import Entropy
from fedpeft.privacy import SampledRelease, sampled_epsilon
from fedpeft.privacy.audit import OVER_NORM, AuditResult, coin_flips, verdict
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale, noisy_sum

__all__ = ["audit_examples"]

TENSORS = 4
"""A canary lies in so many tensors: clipping tensor by tensor would let it be twice as long."""


def audit_examples(noise: NoiseScale, *, steps: int, canaries: int, delta: float, entropy: Entropy) -> AuditResult:
    """Attacks so many steps of DP-SGD over a data set of canaries, each in it or not.

    Args:
        noise: the mechanism.
        steps: noisy sums that the attacker sees.
        canaries: at least 20.
        delta: of claim and bound; far below 1 / canaries, or it swallows the bound.
        entropy: for coins, samples and noise; the operating system's.
    """
    present = coin_flips(canaries, entropy)
    parameters = TENSORS * canaries
    scores = np.zeros(canaries)

    def gradients(taken: Indices) -> Iterator[list[Tensor]]:
        rows = torch.zeros(len(taken), canaries)
        for row, index in enumerate(taken):
            rows[row, int(index)] = OVER_NORM * noise.l2_clip_norm if present[index] else 0.0
        yield [rows] * TENSORS

    for _ in range(steps):
        total = noisy_sum(gradients, canaries, noise, parameters, entropy)
        scores += total.reshape(TENSORS, canaries).sum(0)
    cost = SampledRelease(
        noise_multiplier=noise.noise_multiplier, sampling_rate=noise.sampling_rate, steps=steps, parameters=parameters
    )
    return verdict(scores, present, claimed=sampled_epsilon([(cost, 1)], delta), delta=delta, releases=steps)
