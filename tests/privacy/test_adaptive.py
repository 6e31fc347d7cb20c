"""Adaptive clipping: what its bit costs, what it weighs, and where the clip norm goes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId
from fedpeft.privacy import (
    CLIP_BIT,
    bit_noise,
    bit_vector,
    bit_weight,
    clip,
    decode_sum,
    next_clip_norm,
    noisy_words,
    size_mechanism,
)
from fedpeft.ring import InputRefused

DELTAS = BlockId("deltas")


def _mechanism(*, clip_norm: float = 1.0, z: float = 1.0, devices: int = 20, weight: float | None = None):  # type: ignore[no-untyped-def]
    return size_mechanism(
        l2_clip_norm=clip_norm,
        noise_multiplier=z,
        colluders=1,
        devices=devices,
        threshold=devices - 2,
        bits=32,
        parameters=9,
        bit_weight=bit_weight(clip_norm, z, devices) if weight is None else weight,
    )


@given(st.floats(1e-3, 1e3), st.floats(0.05, 50), st.integers(3, 5000))
def test_the_noise_multiplier_splits_as_in_the_paper(clip_norm: float, z: float, devices: int) -> None:
    """z^-2 = z_delta^-2 + (2 sigma_b)^-2: Andrew et al. 2021, Theorem 1."""
    weight = bit_weight(clip_norm, z, devices)
    sensitivity = math.hypot(clip_norm, weight)
    z_delta, sigma_b = z * sensitivity / clip_norm, bit_noise(weight, z, clip_norm, devices) * devices
    assert z**-2 == pytest.approx(z_delta**-2 + (2 * sigma_b) ** -2, rel=1e-9)
    assert z_delta <= 1.0308 * z
    assert weight / clip_norm <= 0.25
    assert math.ldexp(weight, 4 - math.frexp(weight)[1]).is_integer()


def test_a_large_cohort_gets_the_noise_on_the_bits_that_the_paper_recommends() -> None:
    for devices in (100, 1000, 5000):
        noise = bit_noise(bit_weight(0.3, 1.0, devices), 1.0, 0.3, devices)
        assert 0.05 <= noise <= 0.058  # rounded down to four digits


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(0.01, 100))
def test_one_client_moves_deltas_and_bit_together_by_at_most_the_sensitivity(
    seed: int, clip_norm: float, length: float
) -> None:
    """Neighbouring runs: a contribution, and zeros in its place. On the grid, in integers."""
    made = _mechanism(clip_norm=clip_norm)
    vector = np.random.default_rng(seed).standard_normal(8)
    vector = (vector * length * clip_norm / np.linalg.norm(vector)).astype(np.float32)
    clipped = clip({DELTAS: vector}, l2_clip_norm=clip_norm, allowance=made.allowance)
    bit = bit_vector(clipped.scale == 1.0, made.terms.bit_weight)
    on_grid = np.concatenate([np.rint(v.astype(np.float64) / made.terms.step) for v in (clipped.vectors[DELTAS], bit)])
    assert np.linalg.norm(on_grid) * made.terms.step <= made.terms.sensitivity
    noisy_words({**clipped.vectors, CLIP_BIT: bit}, made, os_entropy)  # nor does the product refuse it


def test_deltas_of_full_length_beside_a_bit_that_weighs_more_than_stated_are_refused() -> None:
    made = _mechanism()
    vector = np.zeros(8, np.float32)
    vector[0] = 1.0 - made.allowance * 2
    with pytest.raises(InputRefused, match="clipped to"):
        noisy_words({DELTAS: vector, CLIP_BIT: bit_vector(True, 2 * made.terms.bit_weight)}, made, os_entropy)


def test_the_noise_is_sized_for_the_bit_too() -> None:
    with_bit, without = _mechanism(weight=0.25), _mechanism(weight=0.0)
    ratio = with_bit.share_sigma * with_bit.terms.step / (without.share_sigma * without.terms.step)
    assert ratio == pytest.approx(math.hypot(1.0, 0.25))
    assert with_bit.release.noise_multiplier == without.release.noise_multiplier


@pytest.mark.parametrize("weight", [0.3, 2.0**-40, -0.25, math.nan, math.inf])
def test_a_bit_that_does_not_lie_on_the_grid_is_refused_by_whoever_checks_the_terms(weight: float) -> None:
    from dataclasses import replace

    made = _mechanism()
    bad = replace(made, terms=replace(made.terms, bit_weight=weight))
    assert bad.problems()


@pytest.mark.drawn(1)
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_clip_norm_finds_the_quantile_of_the_norms(quantile: float) -> None:
    """Through grid, noise and ring, from a norm ten times too large and one ten times too small."""
    devices, norms = 200, np.exp(np.random.default_rng(1).normal(0.0, 0.5, 200))
    way = math.ceil(math.log(10) / (0.5 * min(quantile, 1 - quantile)))  # rounds, where all bits are equal
    for start in (0.1, 10.0):
        norm, last = start, []
        for _ in range(way + 14):
            made = size_mechanism(
                l2_clip_norm=norm,
                noise_multiplier=2.0,
                colluders=0,
                devices=devices,
                threshold=devices,
                bits=32,
                parameters=2,
                bit_weight=bit_weight(norm, 2.0, devices),
            )
            total = np.zeros(1, "<u4")
            for own in norms:
                clipped = clip({DELTAS: np.array([own], np.float32)}, l2_clip_norm=norm, allowance=made.allowance)
                bit = bit_vector(clipped.scale == 1.0, made.terms.bit_weight)
                total += noisy_words({**clipped.vectors, CLIP_BIT: bit}, made, os_entropy)[CLIP_BIT]
            sums = {CLIP_BIT: float(decode_sum(total, made.terms.step)[0])}
            norm = next_clip_norm(
                norm, sums, weight=made.terms.bit_weight, survivors=devices, quantile=quantile, rate=0.5
            )
            last.append(norm)
        assert np.mean(norms <= np.exp(np.mean(np.log(last[-10:])))) == pytest.approx(quantile, abs=0.08)


def test_a_sum_without_bits_leaves_the_clip_norm_as_it_is() -> None:
    assert next_clip_norm(0.7, {}, weight=0.1, survivors=5, quantile=0.5, rate=0.2) == 0.7


def test_noise_cannot_carry_the_clip_norm_further_than_a_round_allows() -> None:
    for total in (-1e9, 1e9):
        moved = next_clip_norm(1.0, {CLIP_BIT: total}, weight=0.25, survivors=5, quantile=0.5, rate=0.2)
        assert math.exp(-0.1) - 1e-12 <= moved <= math.exp(0.1) + 1e-12
