"""Against dp-accounting and the analytic Gaussian mechanism (Balle and Wang 2018)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedpeft.privacy import Budget, Release, calibrate, epsilon
from fedpeft.privacy.accountant import ORDERS

FINE = 1e6


def release(z: float, *, sigma: float = FINE, shares: int = 10, parameters: int = 74_498) -> Release:
    return Release(noise_multiplier=z, shares=shares, share_sigma=sigma, parameters=parameters, devices=shares)


def analytic(z: float, rounds: int, delta: float) -> float:
    """The exact epsilon of ``rounds`` Gaussian releases: one with s = sqrt(rounds) / z."""
    s = math.sqrt(rounds) / z

    def excess(eps: float) -> float:
        return float(norm.cdf(s / 2 - eps / s) - math.exp(eps) * norm.cdf(-s / 2 - eps / s)) - delta

    return float(brentq(excess, 0, 500))


CASES = [(1.0, 1), (4.722, 10), (10.56, 50), (0.5, 1), (20.0, 500), (2.852, 20)]


@pytest.mark.parametrize(("z", "rounds"), CASES)
def test_the_epsilon_of_a_fine_grid_is_that_of_dp_accounting(z: float, rounds: int) -> None:
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    oracle = RdpAccountant(ORDERS.tolist())
    oracle.compose(SelfComposedDpEvent(GaussianDpEvent(z), rounds))
    assert epsilon([(release(z), rounds)], 1e-5) == pytest.approx(oracle.get_epsilon(1e-5), abs=1e-4)


@pytest.mark.parametrize(("z", "rounds"), CASES)
def test_the_epsilon_is_never_below_the_exact_one_and_close_to_it(z: float, rounds: int) -> None:
    exact, ours = analytic(z, rounds, 1e-5), epsilon([(release(z), rounds)], 1e-5)
    assert exact <= ours <= 1.12 * exact


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
