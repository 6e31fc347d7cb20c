"""The audit of DP-SGD: canary examples, or people, through the code of a private step, from sample to noisy sum.

A canary's gradient points where no other does, and is much longer than the clip norm: the worst example that a
person could hold. The attacker sees every noisy sum of the run, as whoever sees each update could. Model and optimizer
are left out: they only hide something from the attacker.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.entropy import Entropy
from fedpeft.privacy import SampledRelease, sampled_epsilon
from fedpeft.privacy.audit import OVER_NORM, AuditResult, coin_flips, verdict
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale, noisy_sum
from fedpeft.tuning.person_gradients import PersonGradients

__all__ = ["audit_examples", "audit_people"]

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
    canary = OVER_NORM * noise.l2_clip_norm

    def gradients(taken: Indices) -> Iterator[list[Tensor]]:
        yield _rows(taken, canary * present, canaries)

    return _attacked(gradients, present, noise, steps=steps, delta=delta, entropy=entropy)


def audit_people(
    noise: NoiseScale, *, steps: int, canaries: int, examples_per_person: int, delta: float, entropy: Entropy
) -> AuditResult:
    """As ``audit_examples`` over canary people: each has more examples than a step looks at, all in one direction.

    Args:
        noise, steps, canaries, delta, entropy: see ``audit_examples``.
        examples_per_person: a step looks at so many of each at most.
    """
    present = coin_flips(canaries, entropy)
    each = examples_per_person + 2
    lengths = OVER_NORM * noise.l2_clip_norm * present
    people = tuple(np.arange(each * person, each * (person + 1)) for person in range(canaries))

    def of(indices: Indices) -> Iterator[tuple[Indices, list[Tensor]]]:
        for some in np.array_split(indices, max(1, len(indices) // 64)):
            yield some, _rows(some // each, lengths, canaries)

    made = PersonGradients(of, people, most=examples_per_person, parameters=TENSORS * canaries, entropy=entropy)
    return _attacked(made.gradients, present, noise, steps=steps, delta=delta, entropy=entropy, unit="person")


def _rows(places: Indices, lengths: npt.NDArray[np.floating], canaries: int) -> list[Tensor]:
    """Canaries that are as long as this, each in its own direction of every tensor."""
    rows = torch.zeros(len(places), canaries)
    rows[torch.arange(len(places)), torch.from_numpy(places)] = torch.from_numpy(lengths[places]).float()
    return [rows] * TENSORS


def _attacked(
    gradients: Callable[[Indices], Iterator[list[Tensor]]],
    present: npt.NDArray[np.bool_],
    noise: NoiseScale,
    *,
    steps: int,
    delta: float,
    entropy: Entropy,
    unit: Literal["example", "person"] = "example",
) -> AuditResult:
    """The attacker adds up what every step shows in each canary's direction."""
    canaries, parameters = len(present), TENSORS * len(present)
    scores = np.zeros(canaries)
    for _ in range(steps):
        total = noisy_sum(gradients, canaries, noise, parameters, entropy)
        scores += total.reshape(TENSORS, canaries).sum(0)
    cost = SampledRelease(
        noise_multiplier=noise.noise_multiplier,
        sampling_rate=noise.sampling_rate,
        steps=steps,
        parameters=parameters,
        unit=unit,
    )
    return verdict(scores, present, claimed=sampled_epsilon([(cost, 1)], delta), delta=delta, releases=steps)
