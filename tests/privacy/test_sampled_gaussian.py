"""The accountant of DP-SGD against dp-accounting, Opacus's PRV accountant, and a single step by integration."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from fedpeft.privacy import SampledRelease, calibrate_sampled, epsilon, sampled_epsilon, total_epsilon
from fedpeft.privacy.accountant import Release
from fedpeft.privacy.sampled_gaussian import Direction, _adding, _loss_at, _removing, _step

# noise multiplier, sampling rate, steps, delta
CASES = [
    (1.0, 0.1, 100, 1e-5),
    (0.6, 0.05, 200, 1e-4),
    (5.0, 0.02, 3000, 1e-5),
    (0.8, 0.08, 120, 1e-4),
    (2, 1, 1, 1e-5),
]


def release(z: float, q: float, steps: int, parameters: int = 1) -> SampledRelease:
    return SampledRelease(noise_multiplier=z, sampling_rate=q, steps=steps, parameters=parameters)


@pytest.mark.parametrize(("z", "q", "steps", "delta"), CASES)
def test_epsilon_agrees_with_dp_accounting_and_opacus(z: float, q: float, steps: int, delta: float) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), steps)
    ours = sampled_epsilon([(release(z, q, steps), 1)], delta)
    assert ours == pytest.approx(accountant.get_epsilon(delta), abs=0.02)


@pytest.mark.torch
def test_epsilon_agrees_with_the_prv_accountant_of_opacus() -> None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(1.0, 0.1, 100)]
    assert sampled_epsilon([(release(1.0, 0.1, 100), 1)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=0.02)


def test_one_step_is_never_below_the_hockey_stick_divergence() -> None:
    """Numerical integration of max(0, P - e^epsilon Q) at the epsilon that is claimed gives at most delta."""
    z, q, delta = 0.7, 0.2, 1e-4
    claimed = sampled_epsilon([(release(z, q, 1), 1)], delta)
    x = np.linspace(-12, 14, 2_000_001)
    zero = np.exp(-(x**2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
    one = np.exp(-((x - 1) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
    mixed = (1 - q) * zero + q * one
    for p, other in ((mixed, zero), (zero, mixed)):
        assert np.maximum(0, p - math.exp(claimed) * other).sum() * (x[1] - x[0]) <= delta * (1 + 1e-6)
    nearly = claimed - 0.01
    assert np.maximum(0, mixed - math.exp(nearly) * zero).sum() * (x[1] - x[0]) > delta


@pytest.mark.parametrize("seed", range(12))
def test_no_small_data_set_is_easier_to_tell_apart_than_the_pair(seed: int) -> None:
    """Zhu, Dong and Wang 2022, Theorem 11, by brute force: every sample of up to four other examples is a mixture part.

    Gradients on a line, of length at most 1, the target at the bound or not; both directions at the claimed epsilon.
    """
    draw = np.random.Generator(np.random.Philox(seed))
    z, q, delta = float(draw.uniform(0.5, 2.0)), float(draw.uniform(0.05, 0.9)), 10.0 ** -draw.uniform(2, 5)
    others = np.where(draw.random(4) < 0.5, draw.choice([-1.0, 1.0], 4), draw.uniform(-1, 1, 4))
    target = float(draw.choice([1.0, -1.0, draw.uniform(-1, 1)]))
    x = np.linspace(-5 - 12 * z, 5 + 12 * z, 100_001)

    def density(centre: float) -> np.ndarray:
        return np.exp(-((x - centre) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))

    without, including = np.zeros_like(x), np.zeros_like(x)
    for taken in range(16):
        flags = np.array([taken >> i & 1 for i in range(4)], bool)
        weight = float(np.prod(np.where(flags, q, 1 - q)))
        rest = float(others[flags].sum())
        without += weight * density(rest)
        including += weight * ((1 - q) * density(rest) + q * density(rest + target))
    claimed = sampled_epsilon([(release(z, q, 1), 1)], delta)
    for p, other in ((including, without), (without, including)):
        assert np.maximum(0, p - math.exp(claimed) * other).sum() * (x[1] - x[0]) <= delta * (1 + 1e-6)


@pytest.mark.parametrize(("epsilon_", "q", "steps"), [(1.0, 0.66, 40), (1.0, 1.0, 120), (0.1, 0.05, 3000)])
def test_the_search_for_noise_begins_far_below_it_without_underflow(epsilon_: float, q: float, steps: int) -> None:
    z = calibrate_sampled(epsilon_, 1e-4, lambda guess: release(guess, q, steps, 50_000))
    assert sampled_epsilon([(release(z, q, steps, 50_000), 1)], 1e-4) <= epsilon_


def test_without_sampling_it_is_the_gaussian() -> None:
    exact = 4.3772  # analytic Gaussian mechanism (Balle and Wang 2018), z = 1, delta = 1e-5
    assert sampled_epsilon([(release(1.0, 1.0, 1), 1)], 1e-5) == pytest.approx(exact, abs=1e-3)


def test_different_releases_compose_as_one_run_of_all() -> None:
    together = sampled_epsilon([(release(1.0, 0.1, 60), 1), (release(1.0, 0.1, 40), 1)], 1e-5)
    assert together == pytest.approx(sampled_epsilon([(release(1.0, 0.1, 100), 1)], 1e-5), abs=1e-3)
    assert sampled_epsilon([(release(1.0, 0.1, 50), 2)], 1e-5) == pytest.approx(together, abs=1e-3)


def test_nothing_costs_nothing_and_more_steps_cost_more() -> None:
    assert sampled_epsilon([], 1e-5) == 0.0
    costs = [sampled_epsilon([(release(1.0, 0.1, steps), 1)], 1e-5) for steps in (1, 10, 100)]
    assert costs == sorted(costs)
    assert 0.0 <= sampled_epsilon([(release(1000.0, 0.01, 1), 1)], 0.1) < 1e-6


def test_the_calibrated_noise_fits_and_a_little_less_does_not() -> None:
    z = calibrate_sampled(3.0, 1e-4, lambda guess: release(guess, 0.08, 120, 37_000))
    assert sampled_epsilon([(release(z, 0.08, 120, 37_000), 1)], 1e-4) <= 3.0
    assert sampled_epsilon([(release(0.995 * z, 0.08, 120, 37_000), 1)], 1e-4) > 3.0


def test_a_budget_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="larger epsilon"):
        calibrate_sampled(1e-9, 1e-6, lambda guess: release(guess, 1.0, 100, 10**6))


def test_both_units_in_one_ledger_add_up() -> None:
    client = Release(noise_multiplier=4.0, shares=3, share_sigma=1e5, parameters=1000, devices=5)
    example = release(1.0, 0.1, 10)
    halved = replace(client, noise_multiplier=2.0)  # without an example the client's delta is another, up to 2 C away
    apart = epsilon([(halved, 2)], 5e-6) + sampled_epsilon([(example, 1)], 5e-6)
    assert total_epsilon([client, example, client], 1e-5) == pytest.approx(apart)


def test_what_hides_a_person_hides_each_of_their_examples_half_as_well_and_never_the_other_way_round() -> None:
    person = replace(release(2.0, 0.1, 20), unit="person")
    alone = total_epsilon([person], 1e-5)
    assert alone == sampled_epsilon([(person, 1)], 1e-5) == total_epsilon([person], 1e-5, "person")
    inside = total_epsilon([person], 1e-5, "example")
    # Two neighbours in a row, (2 epsilon, (1 + e^epsilon) delta'): at least twice the epsilon, at a smaller delta.
    assert 2 * alone < inside < 2.6 * alone
    assert total_epsilon([person, release(2.0, 0.1, 20)], 1e-5, "person") == math.inf
    assert total_epsilon([release(2.0, 0.1, 20)], 1e-5, "person") == math.inf
    assert total_epsilon([], 1e-5, "person") == 0.0


@pytest.mark.parametrize(("z", "q", "steps", "delta"), [(2.0, 0.3, 20, 1e-4), (5.0, 0.02, 600, 1e-5)])
def test_epsilon_of_people_is_within_a_thousandth_of_dp_accounting_and_never_under(
    z: float, q: float, steps: int, delta: float
) -> None:
    from dp_accounting.pld import privacy_loss_distribution

    above, below = (
        privacy_loss_distribution.from_gaussian_mechanism(
            z,
            sampling_prob=q,
            value_discretization_interval=2e-4,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        .self_compose(steps)
        .get_epsilon_for_delta(delta)
        for pessimistic in (True, False)
    )
    ours = sampled_epsilon([(replace(release(z, q, steps), unit="person"), 1)], delta)
    assert below <= ours <= above + 1e-3


@pytest.mark.parametrize("x", [-9.0, 0.0, 0.5, 1.0, 7.0])
@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (0.3, 0.9), (5.0, 1.0)])
def test_a_loss_is_the_logarithm_of_the_densities_ratio(x: float, z: float, q: float) -> None:
    zero, one = norm.logpdf(x, 0, z), norm.logpdf(x, 1, z)
    mixed = np.logaddexp(zero + (math.log1p(-q) if q < 1 else -math.inf), one + math.log(q))
    assert _loss_at(x, z, q) == pytest.approx(mixed - zero, abs=1e-9)


def test_a_fine_step_beside_a_coarse_one_makes_no_grid_larger_than_its_bound() -> None:
    """The step is that of the finest loss, unless the widest would then have more than two million cells."""
    wide, fine = release(0.05, 1.0, 1), release(10.0, 1e-3, 1)
    for counted in ([(wide, 1), (fine, 1)], [(fine, 1), (wide, 1)]):
        step = _step(counted)
        assert 2 * _loss_at(1 + 9 * 0.05, 0.05, 1.0) / step <= 1 << 21
        assert step > 10 * _step([(fine, 1)])


def test_a_release_that_a_delta_pays_for_alone_has_no_epsilon() -> None:
    assert sampled_epsilon([(release(1e4, 1e-4, 1), 1)], 0.9) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("direction", [_removing, _adding])
@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (0.3, 0.9), (5.0, 0.02)])
def test_masses_on_the_grid_are_those_of_both_distributions(direction: Direction, z: float, q: float) -> None:
    """Rounded up alone, the losses of P would say too little of Q: "connect the dots" (Doroshenko 2022) keeps both."""
    found = direction(release(z, q, 1), 0.01)
    losses = 0.01 * (found.first + np.arange(len(found.p)))
    assert found.p.min() >= 0.0
    assert found.p.sum() + found.lost == pytest.approx(1.0, abs=1e-12)
    assert (found.p * np.exp(-losses)).sum() == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("steps", [10**4, 10**6])
def test_the_grid_is_so_fine_that_the_roundings_of_all_steps_add_up_to_little(steps: int) -> None:
    """Each step's loss is rounded by up to a cell, at random: together by its root as often."""
    assert _step([(release(1.0, 0.5, 1), steps)]) * math.sqrt(steps) <= 0.3 * (1 + 1e-9)
