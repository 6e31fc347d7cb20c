import itertools
import math
from dataclasses import replace

import pytest

from fedpeft.privacy import ACCOUNTANT, SIZES, Opinions, Statement, expected_noise, signal_to_noise


@pytest.mark.parametrize(("parameters", "expected"), [(36_864, 0.52), (16_000, 0.79), (73_728, 0.37)])
def test_signal_to_noise_is_that_of_the_research_notes(parameters: int, expected: float) -> None:
    assert signal_to_noise(100, 1.0, parameters) == pytest.approx(expected, abs=0.005)


def test_sizes_are_in_ascending_order() -> None:
    assert all(small < large for small, large in itertools.pairwise(SIZES.values()))


def test_everybody_present_is_more_noise_than_promised() -> None:
    assert expected_noise(50, 40, 1) == pytest.approx(math.sqrt(50 / 39))


@pytest.mark.parametrize("consistent", [True, False])
def test_a_statement_says_everything_an_epsilon_needs(consistent: bool) -> None:
    text = str(
        Statement(
            opinions=Opinions(ours=7.9951, prv=7.93, rdp=8.6, accountant=ACCOUNTANT),
            delta=1e-5,
            noise_multiplier=1.969,
            l2_clip_norm=0.5,
            rounds=20,
            threshold=40,
            colluders=3,
            consistent=consistent,
        )
    )
    for fact in ("epsilon 7.995", "delta 1e-05", "one client", "replaced by zero", "no amplification"):
        assert fact in text
    for fact in (
        "multiplier 1.969",
        "norm 0.5",
        "rounds: 20",
        "7.995 by ours (exact Gaussian",
        "7.93 by Opacus's PRV",
        "8.6 by its Renyi divergence",
        "3 colluding",
        "37 honest",
        "not covered",
    ):
        assert fact in text
    assert ("malicious" in text) == consistent
    assert ("honest but curious" in text) != consistent


def test_a_statement_says_whether_metrics_were_collected() -> None:
    plain = Statement(
        opinions=Opinions(ours=1.0, prv=1.01, rdp=1.2),
        delta=1e-5,
        noise_multiplier=2.0,
        l2_clip_norm=1.0,
        rounds=3,
        threshold=40,
        colluders=1,
        consistent=True,
    )
    assert "none are collected" in str(plain)
    assert "quantile" not in str(plain)
    assert "at first; it follows the 0.5 quantile of the clients' norms" in str(replace(plain, clip_quantile=0.5))
    noised = str(replace(plain, noised_metrics=True))
    assert "none are collected" not in noised
    assert "mean accuracy and losses of each round, under the same noise" in noised


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("z", [0.3, 4.0, 100.0])
@pytest.mark.parametrize("shares", [1, 7, 90])
def test_the_planned_grid_is_never_finer_than_a_round_s(bits: int, z: float, shares: int) -> None:
    from fedpeft.errors import ConfigInvalid
    from fedpeft.privacy import size_mechanism
    from fedpeft_server.privacy.noise_plan import PLANNED_DEVICES, _worst

    for devices in (100, 1000, PLANNED_DEVICES):
        try:
            made = size_mechanism(
                l2_clip_norm=0.7,
                noise_multiplier=z,
                colluders=1,
                devices=devices,
                threshold=shares + 1,
                bits=bits,
                parameters=50,
                bit_weight=0.0,
            )
        except ConfigInvalid:
            continue
        assert _worst(shares, 50, z, bits).share_sigma <= made.share_sigma
