"""Against dp-accounting and the analytic Gaussian mechanism (Balle and Wang 2018)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedpeft.privacy import Budget, Release, calibrate, epsilon
from fedpeft.privacy.accountant import _by_divergence
from fedpeft.privacy.calibration import least_noise
from fedpeft.privacy.gaussian import gaussian_delta

FINE = 1e6


def release(z: float, *, sigma: float = FINE, shares: int = 10, parameters: int = 74_498) -> Release:
    return Release(noise_multiplier=z, shares=shares, share_sigma=sigma, parameters=parameters, devices=shares)


GRID = [
    (z, rounds, delta)
    for z in (0.3, 0.7, 1.0, 2.0, 4.722, 10.56, 40.0)
    for rounds in (1, 3, 10, 50, 200, 1000)
    for delta in (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
]
"""336 points, epsilon from 0 to 13,000."""


def profile(s: float, eps: float) -> float:
    """The hockey-stick divergence of two Gaussians at distance s, by the logarithms of their tails."""
    first, second = norm.logcdf(s / 2 - eps / s), eps + norm.logcdf(-s / 2 - eps / s)
    return float(math.exp(first) * -math.expm1(second - first))


def test_the_epsilon_of_a_fine_grid_is_never_below_the_exact_one_and_within_a_millionth_of_it() -> None:
    """Balle and Wang's formula, solved by another root finder from other special functions, at 336 points."""
    for z, rounds, delta in GRID:
        s = math.sqrt(rounds) / z
        ours = epsilon([(release(z, parameters=1), rounds)], delta)
        if profile(s, 0.0) <= delta:
            assert ours <= 1e-6
            continue
        exact = brentq(lambda eps, s=s, delta=delta: profile(s, eps) - delta, 0, 10 * s * s + 50 * s, xtol=1e-13)
        assert exact <= ours * (1 + 1e-12) <= exact * (1 + 1e-6) + 1e-6, (z, rounds, delta)


def test_the_formula_is_the_integral_that_defines_it() -> None:
    for s, eps in ((0.1, 0.05), (1.0, 0.5), (1.0, 4.0), (3.0, 10.0), (6.0, 30.0)):
        x = np.linspace(-12, 12 + s, 400_001)
        excess = np.maximum(norm.pdf(x - s) - math.exp(eps) * norm.pdf(x), 0)
        assert gaussian_delta(s, eps) == pytest.approx(
            float(((excess[1:] + excess[:-1]) / 2 * np.diff(x)).sum()), rel=1e-5
        )


@pytest.mark.drawn(3)
@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (4.722, 10), (10.56, 50), (0.5, 1), (20.0, 500), (2.852, 20)])
def test_the_epsilon_is_that_of_dp_accounting_s_loss_distribution(z: float, rounds: int) -> None:
    """Its pessimistic discretisation is never below the exact epsilon; ours is above it by no more than rounding."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    oracle = PLDAccountant(value_discretization_interval=1e-4)
    oracle.compose(SelfComposedDpEvent(GaussianDpEvent(z), rounds))
    for delta in (1e-7, 1e-5, 1e-3):
        theirs, ours = oracle.get_epsilon(delta), epsilon([(release(z, parameters=1), rounds)], delta)
        assert theirs - 2e-3 <= ours <= theirs + 1e-6


@pytest.mark.parametrize("shares", [1, 2, 7])
@pytest.mark.parametrize("shift", [1, 5, 12, 40])
def test_the_epsilon_of_the_coarsest_grid_is_never_below_that_of_its_sums(shares: int, shift: int) -> None:
    """The discrete sum itself, by convolution: the smallest share that is accepted, moved by whole steps."""
    sigma = 4.0
    reach = math.ceil(14 * sigma * math.sqrt(shares)) + shift
    grid = np.arange(-reach, reach + 1)
    one = np.exp(-(grid.astype(float) ** 2) / (2 * sigma**2))
    whole = one = one / one.sum()
    for _ in range(shares - 1):
        whole = np.convolve(whole, one, mode="same")
    here, there = whole[shift:], whole[:-shift]
    z = sigma * math.sqrt(shares) / shift
    for delta in (1e-9, 1e-6, 1e-3):
        ours = epsilon([(release(z, sigma=sigma, shares=shares, parameters=1), 1)], delta)
        assert float(np.maximum(here - math.exp(ours) * there, 0).sum()) <= delta * (1 + 1e-6)


def test_the_exact_accountant_needs_less_noise_than_renyi_s_bound() -> None:
    """The figures of docs/privacy.md."""
    found = {}
    for target in (0.1, 1.0, 3.0, 8.0):
        z = calibrate(Budget(epsilon=target, delta=1e-5), 20, release)
        before = least_noise(
            lambda z, target=target: _by_divergence([(release(z), 20)], 1e-5) <= target, start=0.01, limit=1e6, digits=4
        )
        assert before is not None
        found[target] = round(100 * (1 - z / before), 1)
    assert found == SAVED


SAVED = {0.1: 9.5, 1.0: 7.8, 3.0: 6.9, 8.0: 5.9}
"""Per cent less noise, by epsilon; 20 rounds, delta 1e-5."""


def test_at_24_bits_the_grid_costs_less_than_one_percent() -> None:
    from fedpeft.privacy import size_mechanism

    for devices, parameters in ((10, 74_498), (100, 74_498), (50, 460_800)):
        made = size_mechanism(
            l2_clip_norm=1.0,
            noise_multiplier=1.0,
            colluders=0,
            devices=devices,
            threshold=devices,
            bits=32,
            parameters=parameters,
        )
        coarse = release(1.0, sigma=made.share_sigma / 256, shares=devices, parameters=parameters)
        fine = release(1.0, parameters=1, shares=2)
        assert epsilon([(coarse, 1)], 1e-5) <= 1.01 * epsilon([(fine, 1)], 1e-5)


def test_a_coarse_grid_pays_its_tau_term() -> None:
    fine, coarse = release(1.0), release(1.0, sigma=0.5)
    assert epsilon([(coarse, 1)], 1e-5) > 1.5 * epsilon([(fine, 1)], 1e-5)


def test_tau_and_its_bound_match_the_closed_form_of_two_shares() -> None:
    sigma, d, z = 0.7, 1000, 2.0
    tau = 10 * math.exp(-(math.pi**2) * sigma**2)
    alpha = np.array([2.0, 8.0, 64.0])
    expected = np.minimum(alpha * (1 / (2 * z * z) + tau * d), alpha / 2 * (1 / z + math.sqrt(d) * tau) ** 2)
    found = release(z, sigma=sigma, shares=2, parameters=d).rdp(alpha)
    assert found == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.3, 30), st.integers(1, 200), st.floats(1e-9, 1e-3))
@settings(max_examples=60, deadline=None)
def test_more_rounds_less_noise_and_a_smaller_delta_all_cost_more(z: float, rounds: int, delta: float) -> None:
    here = epsilon([(release(z), rounds)], delta)
    assert epsilon([(release(z), rounds + 1)], delta) > here
    assert epsilon([(release(z * 0.9), rounds)], delta) > here
    assert epsilon([(release(z), rounds)], delta / 10) > here


def test_different_releases_compose_as_their_sum() -> None:
    mixed = epsilon([(release(1.0), 1), (release(2.0), 4)], 1e-5)
    assert mixed == pytest.approx(epsilon([(release(1.0), 2)], 1e-5), abs=1e-3)


@pytest.mark.parametrize(("target", "rounds"), [(8.0, 20), (3.0, 10), (1.0, 8), (0.1, 100)])
def test_calibration_keeps_the_budget_and_wastes_little(target: float, rounds: int) -> None:
    z = calibrate(Budget(epsilon=target, delta=1e-5), rounds, release)
    assert 0.99 * target <= epsilon([(release(z), rounds)], 1e-5) <= target
    assert float(f"{z:.4g}") == z


def test_a_budget_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="allow a larger epsilon"):
        calibrate(Budget(epsilon=1e-9, delta=1e-9), 10**6, release)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0


def test_the_sampler_s_float_error_is_charged() -> None:
    few, many = (
        Release(noise_multiplier=1.0, shares=3, share_sigma=FINE, parameters=10**7, devices=n) for n in (3, 10**6)
    )
    assert epsilon([(many, 1)], 1e-5) > epsilon([(few, 1)], 1e-5)
