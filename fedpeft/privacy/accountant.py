"""What the noise promises: the exact Gaussian mechanism, and what a distributed discrete Gaussian differs from it.

One release: the sum over survivors of vectors on the integer grid, of which one client moves at most Delta_2, plus
m shares of discrete Gaussian noise of parameter sigma_share each. Nothing is gained from sampling clients: the
coordinator knows whom it asked. Two bounds, of which the lower one counts:

**As a Gaussian mechanism** (``fedpeft.privacy.gaussian``). With sigma^2 = m sigma_share^2 and s_2^2 = 2:

1. The sum of the shares has, in each coordinate, e^(+-tau) times the probabilities of one discrete Gaussian of sigma
   (Kairouz, Liu and Steinke 2021, Proposition 14, the looser constants),
   tau = 10 sum_{k=1}^{m-1} exp(-2 pi^2 sigma_share^2 k / (k+1)).
2. Draw X from N(mu, sigma^2 - s_2^2), then a discrete Gaussian of parameter s_2 around X: for a whole mu the result
   has the probabilities of a discrete Gaussian of sigma around mu, but for the factor by which the sum of
   exp(-(y - x)^2 / 2 s_2^2) over the integers y depends on x; by Poisson's formula that is within
   1 +- 2.1 exp(-2 pi^2 s_2^2) (Peikert 2010, Theorem 3.1). The second step reads X alone: it is post-processing.
3. So a release is, but for a factor e^(+-a), post-processing of a Gaussian mechanism with noise multiplier
   z' = z sqrt(1 - s_2^2 / sigma^2); a is d (tau + ``SMOOTHING``), and what the sampler's float64 adds.
4. Gaussian mechanisms compose, adaptively, to one with s^2 = sum 1 / z'^2 (Dong, Roth and Su 2022, Corollary 2). If
   both worlds' probabilities are within e^(+-a) of those of a pair with the profile delta(epsilon), theirs is at most
   e^a delta(epsilon - 2a): sums of (P - e^epsilon Q)+.

**By Renyi divergence**, which pays less for a coarse grid. With s = Delta_2 / (sqrt(m) sigma_share) the divergence of
order alpha is at most min( alpha (s^2 / 2 + tau d), (alpha / 2) (s + sqrt(d) tau)^2 ) (the same paper, Theorem 1),
plus the sampler's. Divergences of one order add up over releases; the best order gives epsilon (Canonne, Kamath and
Steinke 2020, Proposition 12).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.privacy.calibration import least_noise
from fedpeft.privacy.discrete_gaussian import RELATIVE_ERROR
from fedpeft.privacy.gaussian import gaussian_epsilon

__all__ = ["ACCOUNTANT", "Budget", "Release", "calibrate", "epsilon"]

ACCOUNTANT = "exact Gaussian mechanism, with what the distributed discrete Gaussian differs from it"

ORDERS: npt.NDArray[np.float64] = 1.0 + np.geomspace(1e-2, 1e8, 4001)
"""Orders tried; any real order above 1 is valid, and a step of 0.6 % loses less than 1e-4 of epsilon."""

MAX_NOISE_MULTIPLIER = 1e6

ROUNDED_VARIANCE = 2.0
"""s_2^2, of the part of the noise that rounds the rest, in squared steps of the grid."""

SMOOTHING = 4.2 * math.exp(-2 * math.pi**2 * ROUNDED_VARIANCE)
"""3e-17 a coordinate: twice 2.1 exp(-2 pi^2 s_2^2), for the factor may lie on either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent.

    Args:
        epsilon: > 0.
        delta: 0 < delta < 1.
    """

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One noisy sum, as the accountant sees it.

    Args:
        noise_multiplier: z: standard deviation of the least noise in the sum, over the clip norm.
        shares: m: the fewest shares of honest devices in any sum that is opened.
        share_sigma: each share's parameter, in steps of the grid.
        parameters: d: coordinates released.
        devices: n: the most shares that a sum may hold; bounds the sampler's float error.
    """

    noise_multiplier: float
    shares: int
    share_sigma: float
    parameters: int
    devices: int

    @property
    def tau(self) -> float:
        """Bound on the logarithm by which a sum of shares differs from one discrete Gaussian, a coordinate."""
        rate = 2.0 * math.pi**2 * self.share_sigma**2
        return 10.0 * sum(math.exp(-rate * k / (k + 1)) for k in range(1, self.shares))

    @property
    def rounding(self) -> float:
        """Every coordinate's density is within (1 +- RELATIVE_ERROR)^devices of the ideal one, in both worlds."""
        return self.devices * self.parameters * RELATIVE_ERROR

    @property
    def precision(self) -> float:
        """1 / z'^2, of the Gaussian mechanism that this post-processes; infinite on a grid that is too coarse."""
        rest = 1.0 - ROUNDED_VARIANCE / (self.shares * self.share_sigma**2)
        return 1.0 / (self.noise_multiplier**2 * rest) if rest > 0 else math.inf

    @property
    def deviation(self) -> float:
        """a: the largest logarithm by which probabilities differ from that post-processing's."""
        return self.parameters * (self.tau + SMOOTHING) + self.rounding

    def rdp(self, orders: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Upper bound on the Renyi divergence of each order between neighbouring runs."""
        s, tau = 1.0 / self.noise_multiplier, self.tau
        ideal = np.minimum(
            orders * (s * s / 2 + tau * self.parameters), orders / 2 * (s + math.sqrt(self.parameters) * tau) ** 2
        )
        slack: npt.NDArray[np.float64] = ideal + (2 * orders - 1) / (orders - 1) * self.rounding
        return slack


def epsilon(releases: Iterable[tuple[Release, int]], delta: float) -> float:
    """Epsilon at ``delta`` of so many of each release, one after the other, each chosen in view of the earlier ones.

    Example:
        >>> one = Release(noise_multiplier=1.0, shares=10, share_sigma=1e5, parameters=74_498, devices=10)
        >>> round(epsilon([(one, 1)], 1e-5), 2)
        4.38
    """
    releases = [(release, times) for release, times in releases if times]
    if not releases:
        return 0.0
    return min(_as_gaussian(releases, delta), _by_divergence(releases, delta))


def _as_gaussian(releases: Sequence[tuple[Release, int]], delta: float) -> float:
    deviation = sum(times * release.deviation for release, times in releases)
    precision = sum(times * release.precision for release, times in releases)
    if not deviation + precision < math.inf:
        return math.inf
    return 2 * deviation + gaussian_epsilon(math.sqrt(precision), delta * math.exp(-deviation))


def _by_divergence(releases: Sequence[tuple[Release, int]], delta: float) -> float:
    total = np.zeros_like(ORDERS)
    for release, times in releases:
        total += times * release.rdp(ORDERS)
    bounds = total + np.log1p(-1.0 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


def calibrate(budget: Budget, rounds: int, release: Callable[[float], Release]) -> float:
    """The least noise multiplier, to four digits, with which ``rounds`` releases stay within the budget.

    Args:
        budget: the target.
        rounds: how many releases.
        release: the release that a noise multiplier gives.

    Raises:
        ValueError: none up to 10^6 does.
    """

    def fits(z: float) -> bool:
        return epsilon([(release(z), rounds)], budget.delta) <= budget.epsilon

    found = least_noise(fits, start=0.01, limit=MAX_NOISE_MULTIPLIER, digits=4)
    if found is None:
        raise ValueError(
            f"Expected epsilon={budget.epsilon:g} at delta={budget.delta:g} over {rounds} rounds to be reachable, "
            f"found none with a noise multiplier up to {MAX_NOISE_MULTIPLIER:g}; allow a larger epsilon."
        )
    return found
