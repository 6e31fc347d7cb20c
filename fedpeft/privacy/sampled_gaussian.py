"""What DP-SGD promises: the Poisson-sampled Gaussian mechanism, composed over steps, by its privacy loss distribution.

One step: every unit (an example, or a person) is taken with probability q on its own; the clipped gradients of those
taken are summed, and noise of standard deviation z C is added. With one unit more or less
the outputs are, in units of C and along its gradient, distributed as

    P = (1 - q) N(0, z^2) + q N(1, z^2)    and    Q = N(0, z^2),

and no other pair is easier to tell apart (Zhu, Dong and Wang 2022, Theorem 11). Both directions count. The privacy
loss log P/Q is put on a grid by connecting the dots (Doroshenko et al. 2022): each cell's mass under P and under Q
goes to the cell's two ends so that both stay what they are, which bounds epsilon from above and loses only the square
of the step. Steps convolve (Koskela et al. 2020); what falls off the ends, and what the Fourier transform rounds, is
added to delta.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedpeft.privacy.calibration import least_noise
from fedpeft.privacy.discrete_gaussian import RELATIVE_ERROR

__all__ = [
    "MAX_NOISE_MULTIPLIER",
    "NOISE_STEPS",
    "SAMPLED_ACCOUNTANT",
    "SampledRelease",
    "calibrate_sampled",
    "sampled_epsilon",
]

SAMPLED_ACCOUNTANT = "privacy loss distribution of the Poisson-sampled Gaussian"

NOISE_STEPS = 2.0**23
"""Grid steps in one standard deviation of the noise of a step of DP-SGD."""

GRID_ERROR = 2.0**-44
"""A discrete Gaussian of NOISE_STEPS against a continuous one, rounded: with t standard deviations from the middle
the probabilities differ by the factor 1 +- (t^2 + 1) / (24 NOISE_STEPS^2), at most 2^-45 up to t = 8."""

REACH = 9.0
"""Standard deviations of the noise within which a single step's loss is put on the grid; the rest counts as lost."""

MAX_CELLS = 1 << 21

MAX_WINDOW = 1 << 24
"""Cells of the composed loss; what has more (so many steps of so little noise) is reported as infinite."""

MAX_EPSILON = 300.0
"""Larger ones are reported as infinite."""

MAX_NOISE_MULTIPLIER = 1e4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRelease:
    """So many steps of DP-SGD by one device, as the accountant sees them.

    Args:
        noise_multiplier: z: standard deviation of the noise over the clip norm.
        sampling_rate: q: probability that an example is taken in a step, in (0, 1].
        steps: taken.
        parameters: coordinates that get noise; bounds what the grid of the noise adds.
        unit: what is taken and hidden.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    parameters: int
    unit: Literal["example", "person"] = "example"

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and 0 < self.sampling_rate <= 1 and self.steps >= 0):
            raise ValueError(f"Expected a noise multiplier > 0 and a sampling rate in (0, 1], found {self}.")


def sampled_epsilon(releases: Iterable[tuple[SampledRelease, int]], delta: float) -> float:
    """Epsilon at ``delta`` of so many of each release; the larger of an added and a removed example.

    Args:
        releases: what was done, and how many times.
        delta: 1e-10 <= delta < 1; the transform's own rounding is of the order of 1e-12.

    Guarantees:
        Never below the exact value of one step, and within 0.02 of dp-accounting's and Opacus's:
        tests/privacy/test_sampled_gaussian.py::test_epsilon_agrees_with_dp_accounting_and_opacus.

    Example:
        >>> steps = SampledRelease(noise_multiplier=1.0, sampling_rate=0.1, steps=100, parameters=1)
        >>> round(sampled_epsilon([(steps, 1)], 1e-5), 2)
        7.05
    """
    counted = [(release, release.steps * times) for release, times in releases if release.steps * times > 0]
    if not counted:
        return 0.0
    slack = 2 * sum(count * release.parameters for release, count in counted) * (GRID_ERROR + RELATIVE_ERROR)
    return _worse_direction(tuple(counted), delta) + slack


@lru_cache(maxsize=1024)  # a statement, a budget and a report ask about the same steps again and again
def _worse_direction(counted: tuple[tuple[SampledRelease, int], ...], delta: float) -> float:
    return max(_composed(counted, delta, direction) for direction in (_removing, _adding))


def calibrate_sampled(epsilon: float, delta: float, release: Callable[[float], SampledRelease]) -> float:
    """The least noise multiplier, to three digits, with which a release stays within epsilon and delta.

    Raises:
        ValueError: none up to 10^4 does.
    """

    def fits(z: float) -> bool:
        return sampled_epsilon([(release(z), 1)], delta) <= epsilon

    found = least_noise(fits, start=0.25, limit=MAX_NOISE_MULTIPLIER, digits=3)
    if found is None:
        raise ValueError(
            f"Expected epsilon={epsilon:g} at delta={delta:g} to be reachable, found none with a noise multiplier "
            f"up to {MAX_NOISE_MULTIPLIER:g}; allow a larger epsilon."
        )
    return found


@dataclass(frozen=True, slots=True)
class _Loss:
    """A privacy loss on the grid: mass ``p[i]`` at ``(first + i) * step``, and ``lost`` at infinity."""

    p: Floats
    first: int
    lost: float


Direction = Callable[[SampledRelease, float], _Loss]


def _removing(release: SampledRelease, step: float) -> _Loss:
    """Log P/Q under P."""
    z, q = release.noise_multiplier, release.sampling_rate
    top = _loss_at(1.0 + REACH * z, z, q)
    bottom = math.log1p(-q) if q < 1 else _loss_at(-REACH * z, z, q)
    first, last = math.floor(bottom / step), math.ceil(top / step)
    edges = _places(step * np.arange(first, last + 1, dtype=np.float64), z, q)
    zero, one = _masses(edges / z), _masses((edges - 1.0) / z)
    return _connected((1 - q) * zero + q * one, zero, first, step)


def _adding(release: SampledRelease, step: float) -> _Loss:
    """Log Q/P under Q."""
    z, q = release.noise_multiplier, release.sampling_rate
    bottom = -_loss_at(REACH * z, z, q)
    top = -math.log1p(-q) if q < 1 else -_loss_at(-REACH * z, z, q)
    first, last = math.floor(bottom / step), math.ceil(top / step)
    # Ascending losses are descending places: read them from the other side.
    edges = -_places(-step * np.arange(first, last + 1, dtype=np.float64), z, q)
    zero, one = _masses(edges / z), _masses((edges + 1.0) / z)
    return _connected(zero, (1 - q) * zero + q * one, first, step)


def _loss_at(x: float, z: float, q: float) -> float:
    return float(np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + (2 * x - 1) / (2 * z * z)))


def _places(losses: Floats, z: float, q: float) -> Floats:
    """Where log P/Q has these values; minus infinity below its least, log(1 - q)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = losses + np.log1p(-(1 - q) * np.exp(-losses)) - math.log(q)  # log((e^l - (1 - q)) / q)
    return np.where(np.isnan(excess), -np.inf, z * z * excess + 0.5)


def _masses(edges: Floats) -> Floats:
    """Of a standard normal: below the first edge, between each two, above the last; exact in both tails."""
    ends = np.concatenate([[-np.inf], edges, [np.inf]])
    beyond = np.array([math.erfc(abs(x) / math.sqrt(2)) / 2 for x in ends])  # each end's own tail
    found: Floats = np.where(ends[:-1] > 0, beyond[:-1] - beyond[1:], beyond[1:] - beyond[:-1])
    left = int(np.searchsorted(ends, 0.0, side="right")) - 1  # of the cell that zero lies in
    found[left] = math.erfc(-ends[left + 1] / math.sqrt(2)) / 2 - beyond[left]
    return found


def _connected(p: Floats, q: Floats, first: int, step: float) -> _Loss:
    """Each cell's masses onto its ends; what lies below onto the first end, what lies above into infinity."""
    cells = len(p) - 2
    low = np.exp(step * (first + np.arange(cells)))  # e^loss at the lower end
    inner_p, inner_q = p[1:-1], q[1:-1]
    # a + b = q and low a + low e^step b = p; both are non-negative but for rounding.
    upper = np.clip((inner_p - low * inner_q) / (low * math.expm1(step)), 0.0, inner_q)
    placed = np.zeros(cells + 1)
    placed[1:] += low * math.exp(step) * upper
    placed[:-1] += np.maximum(inner_p - low * math.exp(step) * upper, 0.0)
    placed[0] += p[0]
    return _Loss(placed, first, float(p[-1]))


def _composed(counted: Sequence[tuple[SampledRelease, int]], delta: float, direction: Direction) -> float:
    step = _step(counted)
    losses = [(direction(release, step), count) for release, count in counted]
    tail = delta * 1e-6
    lowest, highest = _window(losses, step, tail)
    size = 1 << max(highest - lowest, *(len(loss.p) for loss, _ in losses)).bit_length()
    if size > MAX_WINDOW:
        return math.inf
    spectrum = np.ones(size // 2 + 1, np.complex128)
    offset, survive = 0, 0.0
    for loss, count in losses:
        spectrum *= np.fft.rfft(loss.p, size) ** count
        offset += count * loss.first
        survive += count * math.log1p(-loss.lost)
    p = np.maximum(np.fft.irfft(spectrum, size), 0.0)
    p = np.roll(p, (offset - lowest) % size)  # entry i is the mass at lowest + i
    lost = -math.expm1(survive) + tail + size * 2.0**-53
    return _smallest_epsilon(p, step * (lowest + np.arange(size, dtype=np.float64)), lost, delta)


def _step(counted: Sequence[tuple[SampledRelease, int]]) -> float:
    """A thirtieth of the least standard deviation that a step's loss has; bounded so that the grid stays small.

    The excess of epsilon falls with the square: at most 1e-3 over dp-accounting on a grid of 2e-4
    (tests/privacy/test_sampled_gaussian.py).
    """
    fine = []
    for release, count in counted:
        deviation = release.sampling_rate * math.sqrt(math.expm1(min(release.noise_multiplier**-2.0, 4.0)))
        fine.append(min(0.006, 0.03 * deviation, 0.3 / math.sqrt(count)))
    widest = max(_loss_at(1.0 + REACH * r.noise_multiplier, r.noise_multiplier, r.sampling_rate) for r, _ in counted)
    return max(min(fine), 2.0 * widest / MAX_CELLS, 1e-7)


def _window(losses: Sequence[tuple[_Loss, int]], step: float, tail: float) -> tuple[int, int]:
    """Grid places between which all but ``tail`` of the sum's mass lies, on either side (Chernoff)."""
    ends, masses = [], []
    for loss, count in losses:
        there = np.flatnonzero(loss.p)  # a peak where nothing lies would let all the rest underflow
        masses.append((loss.first + there, np.log(loss.p[there]), count))
    for sign in (1.0, -1.0):
        best = math.inf
        for order in np.geomspace(1e-2, 1e3, 40):
            total = 0.0
            for places, log_mass, count in masses:
                values = sign * order * step * places + log_mass
                peak = float(values.max())
                total += count * (peak + math.log(float(np.exp(values - peak).sum())))
            best = min(best, (total - math.log(tail)) / order)
        ends.append(best)
    return math.floor(-ends[1] / step) - 1, math.ceil(ends[0] / step) + 1


def _smallest_epsilon(p: Floats, losses: Floats, lost: float, delta: float) -> float:
    """The least epsilon >= 0 with lost + sum over losses above it of (1 - e^(epsilon - loss)) p <= delta."""
    lost += float(p[losses >= MAX_EPSILON].sum())  # as if infinite: beyond it nothing is promised anyway
    if lost >= delta:
        return math.inf
    positive = (losses > 0) & (losses < MAX_EPSILON)
    p, losses = p[positive], losses[positive]
    above = np.cumsum(p[::-1])[::-1]
    scaled = np.cumsum((p * np.exp(-losses))[::-1])[::-1]
    # delta(epsilon) for epsilon just below each loss, from the losses at and above it
    deltas = lost + above - np.concatenate([[1.0], np.exp(losses[:-1])]) * scaled
    exceeding = np.flatnonzero(deltas > delta)
    if len(exceeding) == 0:
        return 0.0
    at = int(exceeding[-1])  # epsilon lies between the loss before this one and this one
    return min(float(losses[at]), math.log((lost + above[at] - delta) / scaled[at]))
