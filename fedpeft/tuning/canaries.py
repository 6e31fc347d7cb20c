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
from fedpeft.ids import BlockId
from fedpeft.privacy import NoiseStream, SampledRelease, coefficients, sampled_epsilon
from fedpeft.privacy import turns as count_turns
from fedpeft.privacy.audit import OVER_NORM, AuditResult, coin_flips, verdict
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale, Turns, noisy_sum
from fedpeft.tuning.person_gradients import PersonGradients

__all__ = ["audit_examples", "audit_people"]

Gradients = Callable[[Indices], Iterator[list[Tensor]]]

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
    gradients: Gradients,
    present: npt.NDArray[np.bool_],
    noise: NoiseScale,
    *,
    steps: int,
    delta: float,
    entropy: Entropy,
    unit: Literal["example", "person"] = "example",
) -> AuditResult:
    """The attacker adds up what every step shows in each canary's direction.

    Of correlated noise the attacker knows the matrix, and so applies it: what is left is each step's fresh noise, and a
    canary in the steps from its turn to its group's next one, by the matrix's column. Whose turn a step is, is told.
    """
    canaries, parameters = len(present), TENSORS * len(present)
    turns = None if noise.bands == 1 else _turns(noise, canaries, parameters, entropy)
    column = coefficients(noise.bands, noise.momentum)
    scores, seen, members = np.zeros(canaries), list[npt.NDArray[np.float64]](), list[Indices]()
    for step in range(steps):
        members.append(np.arange(canaries) if turns is None else turns.members())
        total = noisy_sum(_among(gradients, members[-1]), len(members[-1]), noise, parameters, entropy, turns)
        seen.append(total.reshape(TENSORS, canaries).sum(0))
        fresh = sum(c * earlier for c, earlier in zip(column, reversed(seen), strict=False))
        for since, c in enumerate(column[: step + 1]):
            mine = members[step - since]
            scores[mine] += c * np.asarray(fresh)[mine]
        del seen[: -noise.bands]
    cost = SampledRelease(
        noise_multiplier=noise.noise_multiplier,
        sampling_rate=noise.sampling_rate,
        steps=count_turns(0, steps, noise.bands),
        parameters=parameters * noise.bands,
        unit=unit,
    )
    return verdict(scores, present, claimed=sampled_epsilon([(cost, 1)], delta), delta=delta, releases=steps)


def _turns(noise: NoiseScale, canaries: int, parameters: int, entropy: Entropy) -> Turns:
    block = BlockId("canaries")
    stream = NoiseStream.begin("audit", [block], bands=noise.bands, momentum=noise.momentum, entropy=entropy)
    units = [canary.to_bytes(8, "little") for canary in range(canaries)]
    return Turns(stream, noise, units, {block: parameters}, [block])


def _among(gradients: Gradients, members: Indices) -> Gradients:
    return lambda taken: gradients(members[taken])
