"""One release of DP-SGD (Abadi et al. 2016): a Poisson-sampled Gaussian mechanism over clipped gradients.

Each unit (an example, or a person: ``fedpeft.tuning.person_gradients``) is taken with probability q, by bytes of the
operating system (whoever knows the run's seed must not know the sample); the gradient of each one taken, over all
trained blocks together, is clipped to C and put on a grid of z C / 2^23, so that the sum is one of whole numbers, exact
in any order; the sum gets discrete Gaussian noise there.
With correlated noise a step takes from one group of the units, and later steps take back a part of its noise
(``Turns``).
What a grid and discrete noise differ from a real Gaussian is in the accountant (``fedpeft.privacy.sampled_gaussian``).
Nothing here raises because of what an example holds: a gradient that is not finite counts as zero.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import BlockId
from fedpeft.privacy.correlated import coefficients, column_norm
from fedpeft.privacy.discrete_gaussian import discrete_gaussian
from fedpeft.privacy.noise_stream import CorrelatedNoise, NoiseStream
from fedpeft.privacy.sampled_gaussian import NOISE_STEPS
from fedpeft.tuning.batches import Indices

__all__ = ["NoiseScale", "Turns", "clipped_sum", "noisy_sum", "poisson_sample", "with_noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The mechanism of one step.

    Args:
        l2_clip_norm: C: an example's gradient is clipped to it.
        noise_multiplier: z: of a step's fresh noise over ``spread`` times C.
        sampling_rate: q, in (0, 1]; of correlated noise that of the group whose turn it is.
        bands: b: how many steps one step's noise reaches (``fedpeft.privacy.correlated``); 1: it is independent.
        momentum: that correlated noise is shaped for.
    """

    l2_clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    bands: int = 1
    momentum: float = 0.0

    @property
    def spread(self) -> float:
        """How much further a unit moves what is released over its steps than one step: the column norm of C."""
        return column_norm(coefficients(self.bands, self.momentum)) if self.bands > 1 else 1.0

    @property
    def grid(self) -> float:
        """The step of the grid on which the noise is drawn."""
        return self.noise_multiplier * self.spread * self.l2_clip_norm / NOISE_STEPS

    def bound(self, parameters: int) -> float:
        """What gradients are clipped to, so that neighbouring sums differ by at most C on the grid.

        With correlated noise it is what the matrix makes of neighbouring runs that differs by at most ``spread`` times
        C, the roundings of the rows of noise included (``fedpeft.privacy.noise_stream``).

        Raises:
            ConfigInvalid: the noise is so strong that the grid is too coarse.
        """
        rounding = math.sqrt(parameters) + math.sqrt((self.bands - 1) * parameters) / self.spread
        bound = self.l2_clip_norm - self.grid * rounding
        if bound < 0.9 * self.l2_clip_norm:
            most = 0.1 * NOISE_STEPS / (self.spread * rounding)
            raise ConfigInvalid(
                f"Expected a noise multiplier below {most:.3g} for {parameters} parameters, found "
                f"{self.noise_multiplier:g}; allow a larger epsilon or fewer steps."
            )
        return bound


class Turns:
    """The steps of one round under correlated noise: whose turn each is, and its row of noise.

    The units are dealt to groups by what they are, under the stream's secret key: adding, removing or moving one leaves
    all others where they are, in this round and in the next.

    Args:
        stream: before them.
        noise: the mechanism.
        units: what each unit is.
        sizes: coordinates of every block of the stream.
        trained: those that these steps train, in the order of their coordinates.

    Raises:
        ValueError: the stream is of other noise than the mechanism's, or of other blocks.
    """

    def __init__(
        self,
        stream: NoiseStream,
        noise: NoiseScale,
        units: Sequence[bytes],
        sizes: Mapping[BlockId, int],
        trained: Sequence[BlockId],
    ) -> None:
        if (stream.bands, stream.momentum) != (noise.bands, noise.momentum):
            raise ValueError(f"Expected noise of {noise.bands} bands, shaped for {noise.momentum:g}, found {stream!r}.")
        if missing := set(trained) - set(stream.blocks):
            raise ValueError(f"Expected noise for {sorted(missing)} too, found {stream!r}.")
        ends = dict(zip(stream.blocks, np.cumsum([sizes[own] for own in stream.blocks]).tolist(), strict=True))
        self.width = sum(sizes[own] for own in stream.blocks)
        self._places = np.concatenate([np.arange(ends[own] - sizes[own], ends[own]) for own in trained])
        self._noise = CorrelatedNoise(stream, self.width)
        self._groups = np.array([self._noise.group_of(unit) for unit in units], np.int64)

    def members(self) -> Indices:
        """The units that the next step takes from, ascending."""
        return np.flatnonzero(self._groups == self._noise.group).astype(np.int64)

    def next_row(self, entropy: Entropy) -> npt.NDArray[np.int64]:
        """The next step's noise of the blocks that are trained, in steps of the grid; the others' is not released."""
        row: npt.NDArray[np.int64] = self._noise.next_row(entropy)[self._places]
        return row

    def stream(self) -> NoiseStream:
        """After the steps so far."""
        return self._noise.stream()


def noisy_sum(
    gradients: Callable[[Indices], Iterator[list[Tensor]]],
    count: int,
    noise: NoiseScale,
    parameters: int,
    entropy: Entropy,
    turns: Turns | None = None,
) -> npt.NDArray[np.float64]:
    """One release: the clipped gradients of a Poisson sample, summed, with noise on the grid, (P,).

    Args:
        gradients: of these units, in one or more parts, each one tensor (b, *shape) a parameter.
        count: units of the data set.
        noise: the mechanism.
        parameters: P.
        entropy: for the sample and the noise.
        turns: has the step's noise; None: it is independent.
    """
    bound = noise.bound(parameters if turns is None else turns.width)
    total = torch.zeros(parameters, dtype=torch.float64)
    for part in gradients(poisson_sample(count, noise.sampling_rate, entropy)):
        total += clipped_sum(part, bound, noise.grid)
    return with_noise(total.numpy(), noise, entropy, turns)


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


def with_noise(
    total: npt.NDArray[np.float64],
    noise: NoiseScale,
    entropy: Entropy,
    turns: Turns | None = None,
) -> npt.NDArray[np.float64]:
    """A clipped sum in steps of the grid, with its noise, in the unit of the gradients, (P,)."""
    whole: npt.NDArray[np.float64] = np.rint(total)
    whole += discrete_gaussian(NOISE_STEPS, len(total), entropy) if turns is None else turns.next_row(entropy)
    whole *= noise.grid
    return whole
