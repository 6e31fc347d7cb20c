"""What the noise promises: Renyi DP of the distributed discrete Gaussian, composed over rounds (no sampling).

One release: the sum over survivors of vectors on the integer grid, of which one client moves at most Delta_2, plus
m shares of discrete Gaussian noise of parameter sigma_share each. With s = Delta_2 / (sqrt(m) sigma_share) and
tau = 10 sum_{k=1}^{m-1} exp(-2 pi^2 sigma_share^2 k / (k+1)), the divergence of order alpha is at most

    min( alpha (s^2 / 2 + tau d),  (alpha / 2) (s + sqrt(d) tau)^2 )

(Kairouz, Liu and Steinke 2021, Theorem 1 and Proposition 14, the looser constants), plus what the sampler's float64
adds. Divergences of one order add up over releases; the best order gives epsilon (Canonne, Kamath and Steinke 2020,
Proposition 12). Nothing is gained from sampling clients: the coordinator knows whom it asked.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.privacy.calibration import least_noise
from fedpeft.privacy.discrete_gaussian import RELATIVE_ERROR

__all__ = ["ACCOUNTANT", "Budget", "Release", "calibrate", "epsilon"]

ACCOUNTANT = "RDP of the distributed discrete Gaussian"

ORDERS: npt.NDArray[np.float64] = 1.0 + np.geomspace(1e-2, 1e8, 4001)
"""Orders tried; any real order above 1 is valid, and a step of 0.6 % loses less than 1e-4 of epsilon."""

MAX_NOISE_MULTIPLIER = 1e6


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

    def rdp(self, orders: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Upper bound on the Renyi divergence of each order between neighbouring runs."""
        s = 1.0 / self.noise_multiplier
        rate = 2.0 * math.pi**2 * self.share_sigma**2
        tau = 10.0 * sum(math.exp(-rate * k / (k + 1)) for k in range(1, self.shares))
        ideal = np.minimum(
            orders * (s * s / 2 + tau * self.parameters), orders / 2 * (s + math.sqrt(self.parameters) * tau) ** 2
        )
        # Every coordinate's density is within (1 +- RELATIVE_ERROR)^devices of the ideal one, in both worlds.
        rounding = self.devices * self.parameters * RELATIVE_ERROR
        slack: npt.NDArray[np.float64] = ideal + (2 * orders - 1) / (orders - 1) * rounding
        return slack


def epsilon(releases: Iterable[tuple[Release, int]], delta: float) -> float:
    """Epsilon at ``delta`` of so many of each release, one after the other, each chosen in view of the earlier ones.

    Example:
        >>> one = Release(noise_multiplier=1.0, shares=10, share_sigma=1e5, parameters=74_498, devices=10)
        >>> round(epsilon([(one, 1)], 1e-5), 2)
        4.75
    """
    total = np.zeros_like(ORDERS)
    for release, times in releases:
        total += times * release.rdp(ORDERS)
    if not total.any():
        return 0.0
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
