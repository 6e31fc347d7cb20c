"""The accountants' figures to nine digits: an epsilon on record does not change unnoticed.

That they are right is for other tests, which compare with dp-accounting, Opacus and scipy and allow for their rounding.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import erfcx
from scipy.stats import norm

from fedpeft.privacy import Budget, Release, calibrate, epsilon, gaussian
from fedpeft.privacy.adaptive import CLIP_BIT, bit_noise, bit_vector, bit_weight, next_clip_norm
from fedpeft.privacy.audit import coin_flips, lower_bound, saturation, verdict
from fedpeft.privacy.calibration import least_noise
from fedpeft.privacy.composition import _twice, total_epsilon
from fedpeft.privacy.gaussian import _scaled_erfc, gaussian_delta, gaussian_epsilon
from fedpeft.privacy.noised_metrics import metric_lanes, metric_noise, metric_weight, read_lanes
from fedpeft.privacy.planning import SIZES, expected_noise, signal_to_noise, step_signal_to_noise
from fedpeft.privacy.sampled_gaussian import SampledRelease, calibrate_sampled, sampled_epsilon

CLOSE = 1e-9


def sums(z: float, shares: int, sigma: float, parameters: int, devices: int) -> Release:
    return Release(noise_multiplier=z, shares=shares, share_sigma=sigma, parameters=parameters, devices=devices)


def steps(z: float, q: float, count: int, parameters: int) -> SampledRelease:
    return SampledRelease(noise_multiplier=z, sampling_rate=q, steps=count, parameters=parameters)


FINE, ROUGH = sums(1.0, 10, 1e5, 74_498, 10), sums(2.0, 2, 0.7, 1000, 3)
COARSE, NARROW = sums(4.0, 7, 4.0, 36_864, 12), sums(0.5, 3, 1.5, 10, 50)


@pytest.mark.parametrize(
    ("s", "eps", "delta"),
    [
        (0.1, 0.0, 0.039877611676745806),
        (0.1, 0.5, 6.856582455856059e-09),
        (1.0, 0.5, 0.23842170813487765),
        (1.0, 4.0, 4.712241200793754e-05),
        (3.0, 10.0, 0.018589514315858414),
        (6.0, 30.0, 0.016102118243218014),
    ],
)
def test_delta_of_a_gaussian(s: float, eps: float, delta: float) -> None:
    assert gaussian_delta(s, eps) == pytest.approx(delta, rel=CLOSE)


@pytest.mark.parametrize(("s", "eps"), [(0.05, 0.1), (0.1, 0.0), (1.0, 0.5), (1.0, 4.0), (3.0, 10.0), (6.0, 30.0)])
def test_delta_of_a_gaussian_is_never_below_the_exact_one(s: float, eps: float) -> None:
    """The formula in sixty digits."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        x, y = mp.mpf(s), mp.mpf(eps)
        exact = mp.ncdf(x / 2 - y / x) - mp.exp(y) * mp.ncdf(-x / 2 - y / x)
        assert exact <= mp.mpf(gaussian_delta(s, eps)) <= exact * (1 + mp.mpf(10) ** -9)


def test_the_bound_on_rounding_grows_with_the_squares_that_a_term_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "ROUNDING", 1.0)  # in place of 2^-50, so that it shows
    s, eps = 2.0, 3.0
    first, second = norm.cdf(s / 2 - eps / s), math.exp(eps) * norm.cdf(-s / 2 - eps / s)
    squares = ((eps / s - s / 2) ** 2 + (eps / s + s / 2) ** 2) / 2
    expected = first - second + (1 + squares) * (first + second)
    assert gaussian_delta(s, eps) == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize(
    ("s", "delta", "eps"),
    [
        (0.0, 1e-6, 0.0),
        (0.05, 1e-6, 0.18921317273634486),
        (0.05, 0.5, 0.0),
        (1.0, 1e-5, 4.377178095746785),
        (1.0, 0.3, 0.2766173989075469),
        (4.0, 1e-3, 19.624120568856597),
        (30.0, 1e-5, 577.011973708868),
        (1e7, 1e-5, math.inf),
    ],
)
def test_epsilon_of_a_gaussian(s: float, delta: float, eps: float) -> None:
    found = gaussian_epsilon(s, delta)
    assert found == pytest.approx(eps, rel=CLOSE)
    if 0 < eps < math.inf:  # from above, to ten digits
        assert gaussian_delta(s, found) <= delta < gaussian_delta(s, found * (1 - 3e-10))


@pytest.mark.parametrize("x", [0.0, 1.0, 24.9, 24.999999, 25.0, 25.1, 1e3, 1e8])
def test_the_scaled_error_function_is_never_above_and_a_millionth_below_at_most(x: float) -> None:
    exact = float(erfcx(x))
    assert exact * (1 - 1e-6) <= _scaled_erfc(x) <= exact * (1 + 1e-12)


@pytest.mark.parametrize(
    ("release", "times", "strict", "loose"),
    [
        (FINE, 1, 4.886554119108008, 3.1386705503573133),
        (FINE, 20, 30.5788823631731, 23.06351428713176),
        (ROUGH, 1, 19.311750297597634, 14.455463811446934),
        (ROUGH, 20, 159.25615331622987, 138.22767773461572),
        (COARSE, 1, 1.0710626478270904, 0.5983841151777931),
        (COARSE, 20, 5.608536164669873, 3.6457849519072045),
        (NARROW, 1, 11.688623779478498, 8.416065034341816),
        (NARROW, 20, 85.22877695235057, 71.17268094418606),
    ],
)
def test_epsilon_of_noisy_sums(release: Release, times: int, strict: float, loose: float) -> None:
    assert epsilon([(release, times)], 1e-6) == pytest.approx(strict, rel=CLOSE)
    assert epsilon([(release, times)], 1e-3) == pytest.approx(loose, rel=CLOSE)
    assert total_epsilon([release] * times, 1e-6) == epsilon([(release, times)], 1e-6)


@pytest.mark.parametrize(
    ("release", "precision", "deviation", "divergences"),
    [
        (FINE, 1.00000000002, 6.63914576177836e-10, (0.7500000026467006, 2.0000000015439086, 32.00000000133385)),
        (ROUGH, math.inf, 79.37902903672511, (6.795911664685407, 18.12243110580555, 289.95889769279466)),
        (COARSE, 7 / 110, 3.9400984656356786e-10, (0.046875001571606845, 0.12500000091677066, 2.0000000007920398)),
        (NARROW, 108 / 19, 2.270205427523716e-08, (3.000000021538414, 8.00000005743207, 128.00000091889743)),
    ],
)
def test_what_a_noisy_sum_differs_by_from_a_gaussian(
    release: Release, precision: float, deviation: float, divergences: tuple[float, ...]
) -> None:
    assert release.precision == pytest.approx(precision, rel=CLOSE)
    assert release.deviation == pytest.approx(deviation, rel=CLOSE)
    assert release.rdp(np.array([1.5, 4.0, 64.0])) == pytest.approx(divergences, rel=1e-12)


def test_a_grid_that_rounds_away_all_of_the_noise_has_no_precision() -> None:
    """Two squared steps go into rounding."""
    assert sums(1.0, 2, 1.0, 1, 2).precision == math.inf
    assert sums(1.0, 2, 1.001, 1, 2).precision < math.inf


A, B = steps(1.0, 0.1, 100, 1), steps(0.6, 0.01, 50, 1000)


@pytest.mark.parametrize(
    ("release", "once", "thrice"),
    [
        (A, 7.047004749029271, 9.05033595215109),
        (B, 3.3536915978572592, 2.12181237977024),
        (steps(4.0, 0.5, 30, 10**6), 2.9891484079840303, 3.984994956437934),
        (steps(2.0, 1.0, 10, 1), 7.511379879659772, 11.548785903375409),
    ],
)
def test_epsilon_of_sampled_steps(release: SampledRelease, once: float, thrice: float) -> None:
    assert sampled_epsilon([(release, 1)], 1e-5) == pytest.approx(once, rel=CLOSE)
    assert sampled_epsilon([(release, 3)], 1e-3) == pytest.approx(thrice, rel=CLOSE)
    assert total_epsilon([release] * 3, 1e-3) == sampled_epsilon([(release, 3)], 1e-3)


def test_epsilon_of_unlike_steps_and_of_none() -> None:
    assert sampled_epsilon([(A, 1), (B, 2)], 1e-5) == pytest.approx(7.430821609877491, rel=CLOSE)
    assert sampled_epsilon([(A, 0), (steps(1.0, 0.5, 0, 1), 3)], 1e-5) == 0.0
    halved = replace(FINE, noise_multiplier=FINE.noise_multiplier / 2)  # another delta, not none
    assert total_epsilon([FINE, A], 1e-5) == epsilon([(halved, 1)], 5e-6) + sampled_epsilon([(A, 1)], 5e-6)
    assert total_epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize(("z", "q", "count"), [(0.0, 0.5, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.5, -1)])
def test_steps_out_of_range_are_no_release(z: float, q: float, count: int) -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        steps(z, q, count, 1)


def test_the_noise_that_a_budget_takes() -> None:
    assert calibrate(Budget(epsilon=2.0, delta=1e-5), 20, lambda z: sums(z, 10, 1e5, 1000, 10)) == 8.917
    assert calibrate_sampled(2.0, 1e-5, lambda z: steps(z, 0.05, 50, 10)) == 1.15


@pytest.mark.parametrize(
    ("least", "start", "limit", "digits", "found"),
    [
        (3.14159, 0.25, 100.0, 3, 3.15),
        (3.14159, 0.25, 100.0, 1, 4.0),
        (0.0123456, 0.01, 100.0, 4, 0.01235),
        (100.0, 25.0, 100.0, 3, 100.0),
        (100.0, 25.0, 99.0, 3, None),
        (101.0, 25.0, 100.0, 3, None),
        (0.1, 0.25, 100.0, 3, 0.126),  # the answer is at least half of where the search begins
    ],
)
def test_the_least_noise_is_rounded_up(
    least: float, start: float, limit: float, digits: int, found: float | None
) -> None:
    assert least_noise(lambda z: z >= least, start=start, limit=limit, digits=digits) == found


def test_the_search_for_noise_doubles_and_halves() -> None:
    tried = []
    least_noise(lambda z: tried.append(z) or z >= 3e5, start=0.01, limit=1e6, digits=4)
    assert len(tried) < 60


# What rides in the noisy sum.


@pytest.mark.parametrize(
    ("accuracy", "loss", "train_loss", "lanes"),
    [
        (0.75, 2.0, 4.0, (1.0, 0.5, -0.5, 0.0)),
        (0.0, 0.0, 0.0, (1.0, -1.0, -1.0, -1.0)),
        (1.0, 80.0, 9.0, (1.0, 1.0, 1.0, 1.0)),
        (None, None, 6.0, (-1.0, 0.0, 0.0, 0.5)),
        (0.5, None, 6.0, (-1.0, 0.0, 0.0, 0.5)),
        (None, 1.0, 6.0, (-1.0, 0.0, 0.0, 0.5)),
    ],
)
def test_lanes_of_noised_metrics(
    accuracy: float | None, loss: float | None, train_loss: float, lanes: tuple[float, ...]
) -> None:
    weight, step = 0.125, 2.0**-10
    found = metric_lanes(accuracy=accuracy, loss=loss, train_loss=train_loss, weight=weight, step=step)
    assert found.tolist() == [weight * lane for lane in lanes]
    rounded = metric_lanes(accuracy=0.7501, loss=2.0, train_loss=4.0, weight=weight, step=step)
    assert rounded[1] == round(0.5002 * weight / step) * step


def test_lanes_are_read_as_means_of_those_who_measured() -> None:
    read = read_lanes(0.125 * np.array([2.0, 1.5, -1.5, 3.0]), weight=0.125, survivors=4)
    assert (read.accuracy, read.loss, read.train_loss) == (0.75, 2.0, 7.0)
    one = read_lanes(0.125 * np.array([0.0, 1.0, -1.0, -2.0]), weight=0.125, survivors=2)
    assert (one.accuracy, one.loss, one.train_loss) == (1.0, 0.0, 0.0)
    none = read_lanes(0.125 * np.array([-0.01, 1.0, -1.0, 5.0]), weight=0.125, survivors=2)
    assert (none.accuracy, none.loss, none.train_loss) == (None, None, 8.0)


def test_weights_and_noise_of_bit_and_metrics() -> None:
    assert metric_weight(1.0) == 0.125
    assert metric_weight(10.0) == 1.25
    assert metric_weight(1.7) == 0.203125  # of 0.2125 the first four binary digits
    assert metric_noise(0.125, 2.0, 16) == 0.5
    assert bit_weight(1.0, 1.0, 100) == 0.09375
    assert bit_weight(1.0, 1.0, 10) == 0.25
    assert bit_weight(3.0, 2.0, 1000) == 0.05859375
    assert bit_noise(0.75, 2.0, 1.0, 5) == pytest.approx(2.0 * 1.25 / 7.5)
    assert bit_vector(True, 0.25).tolist() == [0.25]
    assert bit_vector(False, 0.25).tolist() == [-0.25]


@pytest.mark.parametrize(
    ("bits", "survivors", "moved"),
    [(10.0, 10, -0.1), (-10.0, 10, 0.1), (0.0, 10, 0.0), (5.0, 10, -0.05), (1000.0, 10, -0.1), (1.0, 1, -0.1)],
)
def test_the_clip_norm_moves_by_the_share_of_bits(bits: float, survivors: int, moved: float) -> None:
    norm = next_clip_norm(2.0, {CLIP_BIT: bits * 0.25}, weight=0.25, survivors=survivors, quantile=0.5, rate=0.2)
    assert norm == pytest.approx(2.0 * math.exp(moved))
    assert next_clip_norm(2.0, {CLIP_BIT: 1.0}, weight=0.25, survivors=0, quantile=0.5, rate=0.2) == 2.0


def test_sizes_and_what_noise_leaves_of_a_signal() -> None:
    assert list(SIZES.values()) == [1155, 14_979, 19_587, 26_499, 38_019]
    assert signal_to_noise(100, 2.0, 2500) == 1.0
    assert step_signal_to_noise(128.0, 2.0, 1024, devices=4) == 4.0
    assert step_signal_to_noise(128.0, 2.0, 1024) == 2.0
    assert expected_noise(8, 4, 2) == 2.0


# The audit.


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "bound"),
    [
        (100, 100, 100, 1e-5, 3.0486722383648157),
        (100, 50, 45, 0.0, 1.1441859547048807),
        (200, 20, 20, 1e-4, 1.1715957159176469),
        (100, 10, 5, 1e-5, 0.0),
    ],
)
def test_the_bound_of_an_audit(canaries: int, guesses: int, right: int, delta: float, bound: float) -> None:
    assert lower_bound(canaries, guesses, right, delta=delta, failure=0.01) == pytest.approx(bound, rel=1e-6)


def test_the_most_that_canaries_can_show() -> None:
    found = [saturation(count, 1e-5) for count in (20, 100, 333)]
    assert found == pytest.approx([1.349705221131444, 3.0486722383648157, 4.2508407682180405], rel=1e-6)


def test_the_attack_guesses_the_highest_in_and_the_lowest_out() -> None:
    present = np.arange(40) % 2 == 0
    right = verdict(np.where(present, 1.0, -1.0), present, claimed=1.0, delta=1e-5, releases=3)
    assert right.bound == right.most == saturation(40, 1e-5)
    assert (right.canaries, right.releases, right.refuted) == (40, 3, True)
    wrong = verdict(np.where(present, -1.0, 1.0), present, claimed=0.0, delta=1e-5, releases=1)
    assert wrong.bound == 0.0
    assert not wrong.refuted, "a bound of the claim itself refutes nothing"


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_coins_are_the_bits_of_the_entropy(count: int) -> None:
    asked = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return b"\xa5\x0f"[:size]

    assert coin_flips(count, entropy).tolist() == [bool(int(bit)) for bit in "1010010100001111"[:count]]
    assert asked == [1 if count <= 8 else 2]


@pytest.mark.parametrize("s", [0.05, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("delta", [1e-6, 1e-2])
def test_two_neighbours_in_a_row_share_a_delta_that_suffices_for_both(s: float, delta: float) -> None:
    """(2 epsilon, (1 + e^epsilon) delta'): delta' is looked for from a half of delta downwards, by halves at least."""
    asked: list[float] = []

    def single(part: float) -> float:
        asked.append(part)
        return gaussian_epsilon(s, part)

    found = _twice(single, delta)
    assert asked[0] == delta / 2
    assert all(later <= earlier / 2 for earlier, later in pairwise(asked))
    assert found == 2 * gaussian_epsilon(s, asked[-1])
    assert asked[-1] * (1 + math.exp(found / 2)) <= delta


@pytest.mark.parametrize("single", [300.0, 709.0, 710.0, 1e6, math.inf, math.nan])
def test_where_one_neighbour_has_no_epsilon_or_an_enormous_one_two_have_none(single: float) -> None:
    """Nor does a power that no float holds end the accountant."""
    assert _twice(lambda part: single, 1e-5) == math.inf
    assert _twice(lambda part: 30.0 - math.log(part), 1e-5) == math.inf, "no part of delta suffices"


def test_of_few_coordinates_the_divergence_grows_by_what_a_sum_differs_at_most() -> None:
    """The first of two bounds: order (s^2 / 2 + tau d), where tau d is small beside s."""
    release = sums(0.1, 2, 0.5, 1, 2)
    tau = 10 * math.exp(-2 * math.pi**2 * 0.25 / 2)
    assert release.tau == pytest.approx(tau, rel=CLOSE)
    orders = np.array([1.5, 4.0, 64.0])
    assert release.rdp(orders) == pytest.approx(orders * (50 + tau), rel=1e-10)
