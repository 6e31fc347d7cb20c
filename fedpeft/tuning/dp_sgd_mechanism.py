"""One release of DP-SGD (Abadi et al. 2016): a Poisson-sampled Gaussian mechanism over clipped gradients.

Each unit (an example, or a person: ``fedpeft.tuning.person_gradients``) is taken with probability q, by bytes of the
operating system (whoever knows the run's seed must not know the sample); the gradient of each one taken, over all
trained blocks together, is clipped to C and put on a grid of z C / 2^23, so that the sum is one of whole numbers, exact
in any order; the sum gets discrete Gaussian noise there.
What a grid and discrete noise differ from a real Gaussian is in the accountant (``fedpeft.privacy.sampled_gaussian``).
Nothing here raises because of what an example holds: a gradient that is not finite counts as zero.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.privacy.discrete_gaussian import discrete_gaussian
from fedpeft.privacy.sampled_gaussian import NOISE_STEPS
from fedpeft.tuning.batches import Indices

__all__ = ["NoiseScale", "clipped_sum", "noisy_sum", "poisson_sample", "with_noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The mechanism of one step.

    Args:
        l2_clip_norm: C: an example's gradient is clipped to it.
        noise_multiplier: z.
        sampling_rate: q, in (0, 1].
    """

    l2_clip_norm: float
    noise_multiplier: float
    sampling_rate: float

    @property
    def grid(self) -> float:
        """The step of the grid on which the noise is drawn."""
        return self.noise_multiplier * self.l2_clip_norm / NOISE_STEPS

    def bound(self, parameters: int) -> float:
        """What gradients are clipped to, so that neighbouring sums differ by at most C on the grid.

        Raises:
            ConfigInvalid: the noise is so strong that the grid is too coarse.
        """
        bound = self.l2_clip_norm - self.grid * math.sqrt(parameters)
        if bound < 0.9 * self.l2_clip_norm:
            raise ConfigInvalid(
                f"Expected a noise multiplier below {0.1 * NOISE_STEPS / math.sqrt(parameters):.3g} for {parameters} "
                f"parameters, found {self.noise_multiplier:g}; allow a larger epsilon or fewer steps."
            )
        return bound


def noisy_sum(
    gradients: Callable[[Indices], Iterator[list[Tensor]]],
    count: int,
    noise: NoiseScale,
    parameters: int,
    entropy: Entropy,
) -> npt.NDArray[np.float64]:
    """One release: the clipped gradients of a Poisson sample, summed, with noise on the grid, (P,).

    Args:
        gradients: of these units, in one or more parts, each one tensor (b, *shape) a parameter.
        count: units of the data set.
        noise: the mechanism.
        parameters: P.
        entropy: for the sample and the noise.
    """
    bound = noise.bound(parameters)
    total = torch.zeros(parameters, dtype=torch.float64)
    for part in gradients(poisson_sample(count, noise.sampling_rate, entropy)):
        total += clipped_sum(part, bound, noise.grid)
    return with_noise(total.numpy(), noise, entropy)


def poisson_sample(count: int, rate: float, entropy: Entropy) -> Indices:
    """Every one of ``count`` examples with probability ``rate`` (at most 2^-64 less), independently; ascending."""
    if rate >= 1.0:
        return np.arange(count, dtype=np.int64)
    draws = np.frombuffer(entropy(8 * count), "<u8")
    return np.flatnonzero(draws < np.uint64(int(rate * 2.0**64))).astype(np.int64)


def clipped_sum(gradients: list[Tensor], bound: float, grid: float) -> Tensor:
    """The sum of examples' gradients in steps of the grid: (P,) float64, whole numbers.

    Each example's is shortened to ``bound`` over all tensors together, then rounded on its own, which lengthens it by
    at most sqrt(P) / 2 steps. Whole numbers below 2^53 add up exactly, so a sum without an example differs from the sum
    with it by what it was rounded to and nothing else, whatever the order of addition.

    Args:
        gradients: one tensor a parameter, (b, *shape).
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    squares = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) ** 2 for part in flat])
    norms = squares.sum(0).sqrt()  # (b,)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        flat = [torch.where(finite[:, None], part, torch.zeros_like(part)) for part in flat]
    factors = torch.where(finite, torch.clamp(bound / norms.clamp(min=1e-300), max=1.0), torch.zeros_like(norms))
    steps = (factors / grid)[:, None]
    return torch.cat([(part.double() * steps).round_().sum(0) for part in flat]).cpu()


def with_noise(total: npt.NDArray[np.float64], noise: NoiseScale, entropy: Entropy) -> npt.NDArray[np.float64]:
    """A clipped sum in steps of the grid, with its noise, in the unit of the gradients, (P,)."""
    whole: npt.NDArray[np.float64] = np.rint(total)
    whole += discrete_gaussian(NOISE_STEPS, len(total), entropy)
    whole *= noise.grid
    return whole
