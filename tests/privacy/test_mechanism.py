"""The promise of the noise, whatever drops out; and the seeded bugs that must not pass."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import BlockId
from fedpeft.privacy import Mechanism, NoiseTerms, clip, decode_sum, noisy_words, size_mechanism
from fedpeft.privacy.discrete_gaussian import MAX_SIGMA
from fedpeft.privacy.noised_metrics import METRIC_LANES
from fedpeft.ring import InputRefused

BLOCK = BlockId("b")


def sized(
    *,
    l2_clip_norm: float = 1.0,
    noise_multiplier: float = 1.0,
    colluders: int = 1,
    devices: int = 10,
    threshold: int = 7,
    bits: int = 32,
    parameters: int = 1000,
) -> Mechanism:
    return size_mechanism(
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=noise_multiplier,
        colluders=colluders,
        devices=devices,
        threshold=threshold,
        bits=bits,
        parameters=parameters,
    )


@given(
    devices=st.integers(3, 300),
    z=st.floats(0.05, 200),
    norm=st.floats(1e-3, 1e3),
    parameters=st.integers(1, 10**6),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_every_admissible_survivor_set_has_the_promised_noise(
    devices: int, z: float, norm: float, parameters: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(3, devices))
    colluders = data.draw(st.integers(0, threshold - 1))
    made = sized(
        l2_clip_norm=norm,
        noise_multiplier=z,
        colluders=colluders,
        devices=devices,
        threshold=threshold,
        parameters=parameters,
    )
    survivors = data.draw(st.integers(threshold, devices))
    honest = survivors - colluders
    standard_deviation = made.share_sigma * math.sqrt(honest) * made.terms.step
    assert standard_deviation >= z * norm * (1 - 1e-12)
    assert made.release.noise_multiplier == z


@given(devices=st.integers(3, 2000), z=st.floats(0.05, 200), norm=st.floats(1e-3, 1e3), bits=st.sampled_from([16, 32]))
@settings(max_examples=300, deadline=None)
def test_the_largest_sum_fits_into_the_ring(devices: int, z: float, norm: float, bits: int) -> None:
    try:
        made = sized(l2_clip_norm=norm, noise_multiplier=z, devices=devices, threshold=3, bits=bits, parameters=10)
    except ConfigInvalid:
        assert bits == 16, "32 bits hold every such sum"
        return
    total = devices * norm / made.terms.step + 8 * made.share_sigma * math.sqrt(devices)
    assert total < 2 ** (bits - 1)
    assert made.share_sigma == MAX_SIGMA or made.share_sigma > 3.9
    assert math.frexp(made.terms.step)[0] == 0.5


def contributions(devices: int, size: int, norm: float) -> list[dict[BlockId, np.ndarray]]:
    generator = np.random.default_rng(5)
    return [{BLOCK: generator.normal(size=size).astype(np.float32) * norm} for _ in range(devices)]


def noisy_sum(made: Mechanism, inputs: list[dict[BlockId, np.ndarray]], entropy: Entropy) -> np.ndarray:
    norm = made.terms.l2_clip_norm
    total = np.zeros(made.parameters, f"<u{made.bits // 8}")
    for vectors in inputs:
        clipped = clip(vectors, l2_clip_norm=norm, allowance=made.allowance)
        total += noisy_words(clipped.vectors, made, entropy)[BLOCK]
    return decode_sum(total, made.terms.step)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("survivors", [7, 10])
def test_the_sum_is_the_clipped_sum_plus_noise_of_the_right_size(bits: int, survivors: int) -> None:
    """Chi-square of the noise in the unmasked sum, with three dropouts and with none."""
    size = 2000
    made = sized(bits=bits, parameters=size)
    inputs = contributions(survivors, size, 1.0)
    true = sum(
        clip(vectors, l2_clip_norm=1.0, allowance=made.allowance).vectors[BLOCK].astype(np.float64)
        for vectors in inputs
    )
    noise = noisy_sum(made, inputs, seeded_entropy(1, "sum")) - true
    expected = math.sqrt(survivors / made.shares)  # z = C = 1
    assert noise.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * size))
    assert (noise / expected).mean() == pytest.approx(0.0, abs=4 / math.sqrt(size))


def test_a_negative_sum_comes_back_from_the_ring() -> None:
    made = sized(noise_multiplier=0.05, parameters=4)
    vectors = {BLOCK: np.array([-1.0, 0.0, 0.0, 0.0], np.float32)}
    total = noisy_sum(made, [vectors] * 10, seeded_entropy(2, "negative"))
    assert total[0] == pytest.approx(-10, abs=0.5)


@pytest.mark.parametrize("longer", [1.0 + 1e-6, 1.1, 1e6, 1e30])
def test_a_contribution_that_was_not_clipped_is_refused(longer: float) -> None:
    made = sized(parameters=2)
    vector = np.array([0.6, 0.8], np.float64) * longer
    with pytest.raises(InputRefused, match="clip it"):
        noisy_words({BLOCK: vector.astype(np.float32)}, made, seeded_entropy(3, "refused"))


def test_blocks_clipped_one_by_one_are_refused() -> None:
    made = sized(parameters=24)
    each = {BlockId(f"b{index}"): np.ones(1, np.float32) for index in range(24)}
    with pytest.raises(InputRefused, match=r"found a norm of 4\.89"):
        noisy_words(each, made, seeded_entropy(3, "tensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputRefused, match="NaN or inf"):
        noisy_words({BLOCK: np.array([value], np.float32)}, sized(parameters=1), seeded_entropy(3, "finite"))


@given(seed=st.integers(0, 10**6), size=st.integers(1, 300), bits=st.sampled_from([16, 32]))
@settings(max_examples=100, deadline=None)
def test_whatever_clip_returns_is_accepted_on_the_grid(seed: int, size: int, bits: int) -> None:
    made = sized(bits=bits, parameters=size, noise_multiplier=2.0)
    generator = np.random.default_rng(seed)
    vectors = {BLOCK: (generator.standard_t(1.5, size=size) * 10.0 ** generator.integers(-3, 4)).astype(np.float32)}
    clipped = clip(vectors, l2_clip_norm=1.0, allowance=made.allowance)
    noisy_words(clipped.vectors, made, seeded_entropy(seed, "grid"))


def test_too_narrow_a_ring_is_refused_with_the_nearest_that_works() -> None:
    with pytest.raises(ConfigInvalid, match=r"bits = 32") as refused:
        sized(bits=16, parameters=74_498)
    assert "13%" in str(refused.value) or "%" in str(refused.value)
    assert sized(bits=32, parameters=74_498).allowance < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 0.3}, "power of two"),
        ({"step": 2.0**-40}, "below 2\\^31"),
        ({"step": 1.0}, "a share of"),
        ({"colluders": 7}, "fewer than the 7 organisations"),
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"noise_multiplier": math.nan}, "noise multiplier"),
        ({"l2_clip_norm": math.inf}, "clip norm"),
    ],
)
def test_terms_that_break_the_promise_are_named(change: dict[str, float], words: str) -> None:
    made = sized()
    broken = replace(made, terms=replace(made.terms, **change))  # type: ignore[arg-type]
    text = " ".join(str(problem) for problem in broken.problems())
    import re

    assert re.search(words, text), text


def test_packed_lanes_are_refused() -> None:
    assert any("one of (16, 32, 64)" in str(problem) for problem in replace(sized(), bits=24).problems())


# Seeded bugs: what they would do to the measured noise, and that the tests above would see it.


def measured(made: Mechanism, entropy_of: list[Entropy]) -> float:
    zero = {BLOCK: np.zeros(made.parameters, np.float32)}
    total = np.zeros(made.parameters, "<u4")
    for entropy in entropy_of:
        total += noisy_words(zero, made, entropy)[BLOCK]
    return float(decode_sum(total, made.terms.step).std())


def test_the_bug_of_dividing_by_n_is_caught() -> None:
    made = sized(colluders=0, devices=7, parameters=2000)
    right = measured(made, [seeded_entropy(1, "n", device) for device in range(7)])
    by_n = NoiseTerms(l2_clip_norm=1.0, noise_multiplier=1 / math.sqrt(7), colluders=0, step=made.terms.step)
    wrong = measured(replace(made, terms=by_n), [seeded_entropy(1, "n", device) for device in range(7)])
    assert right == pytest.approx(1.0, rel=0.08)
    assert wrong < 0.5


def test_the_bug_of_repeated_noise_is_caught() -> None:
    """Equal seeds on all devices: the noise is seven times one share instead of sqrt(7) times."""
    made = sized(colluders=0, devices=7, parameters=2000)
    same = measured(made, [seeded_entropy(1, "same") for _ in range(7)])
    assert same == pytest.approx(math.sqrt(7), rel=0.1)


@pytest.mark.parametrize("devices", [10, 1_000, 50_000, 100_000, 300_000, 1_000_000])
@pytest.mark.parametrize("weight", [0.0, 0.25, 9 * 2**-15, 2**-40])
def test_the_weight_of_the_bit_lies_on_whatever_grid_the_number_of_devices_asks_for(
    devices: int, weight: float
) -> None:
    made = size_mechanism(
        l2_clip_norm=1.0,
        noise_multiplier=3.0,
        colluders=1,
        devices=devices,
        threshold=4 * devices // 5,
        bits=32,
        parameters=1000,
        bit_weight=weight,
    )
    assert made.problems() == []
    assert (made.terms.bit_weight > 0) == (weight > 0)
    # The nearest multiple of the step below; the first multiple where there is none.
    step = made.terms.step
    assert made.terms.bit_weight == (max(step, weight - weight % step) if weight else 0.0)


# Each limit exactly: the last value that is right, and the first that is not.


def terms(
    step: float, *, norm: float = 1.0, z: float = 1.0, colluders: int = 0, bit: float = 0.0, metric: float = 0.0
) -> NoiseTerms:
    return NoiseTerms(
        l2_clip_norm=norm, noise_multiplier=z, colluders=colluders, step=step, bit_weight=bit, metric_weight=metric
    )


def places(noise: NoiseTerms, *, devices: int = 4, bits: int = 32, parameters: int = 1) -> list[str]:
    made = Mechanism(terms=noise, devices=devices, threshold=4, bits=bits, parameters=parameters)
    return [problem.where for problem in made.problems()]


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        # Four shares of z / (2 step): 4 steps are the least, 2^24 the most.
        (terms(1 / 16, z=0.5), terms(1 / 16, z=0.4999), "noise.step"),
        (terms(1 / MAX_SIGMA, z=2.0), terms(1 / MAX_SIGMA, z=2.001), "noise.step"),
        (terms(1 / 32, colluders=3), terms(1 / 32, colluders=4), "noise.colluders"),
        (terms(1 / 32, bit=3 / 32), terms(1 / 32, bit=3.5 / 32), "noise.bit_weight"),
        (terms(1 / 32, metric=3 / 32), terms(1 / 32, metric=3.5 / 32), "noise.metric_weight"),
        (terms(1 / 32, bit=0.0), terms(1 / 32, bit=-1.0), "noise"),
        (terms(1 / 32, metric=0.0), terms(1 / 32, metric=math.inf), "noise"),
    ],
)
def test_a_term_is_refused_from_its_limit_on_and_not_before(right: NoiseTerms, wrong: NoiseTerms, where: str) -> None:
    assert places(right) == []
    assert places(wrong) == [where]


def test_the_sum_may_reach_up_to_the_rings_half_and_not_it() -> None:
    """4 devices with S = 4096 steps and shares of 1024: 4 * 4096 + 8 * 2 * 1024 is 2^15."""
    assert places(terms(2.0**-12, z=0.5), bits=16) == ["noise.step"]
    assert places(terms(2.0**-12, z=0.4999), bits=16) == []


def test_rounding_may_cost_a_twentieth_of_the_clip_norm() -> None:
    """Half a step of 1 in one coordinate, of 10."""
    assert places(terms(1.0, norm=10.0)) == []
    assert places(terms(1.0, norm=10.0), parameters=2) == ["secagg.bits"]


def test_the_sensitivity_is_the_norm_of_delta_bit_and_all_metrics() -> None:
    assert terms(1.0, norm=3.0, bit=4.0).sensitivity == 5.0
    assert terms(1.0, norm=3.0, metric=2.0).sensitivity == pytest.approx(math.sqrt(9 + METRIC_LANES * 4))


@given(
    devices=st.integers(3, 500), z=st.floats(0.05, 50), norm=st.floats(1e-3, 1e3), bits=st.sampled_from([16, 32, 64])
)
@settings(max_examples=100, deadline=None)
def test_no_finer_grid_would_do(devices: int, z: float, norm: float, bits: int) -> None:
    try:
        made = sized(l2_clip_norm=norm, noise_multiplier=z, devices=devices, threshold=3, bits=bits, parameters=1)
    except ConfigInvalid:
        return
    finer = replace(made, terms=replace(made.terms, step=made.terms.step / 2))
    # Rounding the step up to a power of two leaves less than a factor of two; the largest word is the ring's own.
    total = devices * norm / finer.terms.step + 8 * math.sqrt(devices) * finer.share_sigma
    assert finer.share_sigma > MAX_SIGMA or total > 2 ** (bits - 1) - 1


@pytest.mark.parametrize("z", [0.0, -1.0, math.nan, math.inf])
def test_no_grid_is_looked_for_without_a_noise(z: float) -> None:
    with pytest.raises(ConfigInvalid, match="noise multiplier"):
        sized(noise_multiplier=z)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_no_grid_is_looked_for_without_a_clip_norm(norm: float) -> None:
    with pytest.raises(ConfigInvalid, match="clip norm"):
        sized(l2_clip_norm=norm)


def test_no_grid_is_looked_for_where_nobody_honest_is_left() -> None:
    with pytest.raises(ConfigInvalid, match="fewer than the 7 organisations"):
        sized(colluders=7)
    assert sized(colluders=6).shares == 1


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("length", [1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 + 3])
def test_words_are_the_rounded_input_plus_the_noise_in_every_coordinate(bits: int, length: int) -> None:
    made = sized(bits=bits, parameters=64, noise_multiplier=2.0)
    vector = np.zeros(length, np.float32)
    generator = np.random.default_rng(length)
    vector[generator.integers(0, length, 60)] = 0.1 * generator.standard_normal(60)
    vector[[0, -1]] = -0.1, 0.2
    # The same bytes of entropy give the same noise: the difference is the input alone.
    with_input, noise = (
        noisy_words({BLOCK: one}, made, seeded_entropy(4, "both"))[BLOCK] for one in (vector, np.zeros_like(vector))
    )
    assert with_input.dtype == np.dtype(f"<u{bits // 8}")
    found = decode_sum(with_input - noise, made.terms.step)
    assert np.array_equal(found, np.rint(vector.astype(np.float64) / made.terms.step) * made.terms.step)


@pytest.mark.parametrize("place", [0, 2**15, 2**15 + 2])
def test_the_norm_is_that_of_all_pieces_and_all_blocks(place: int) -> None:
    made = sized(parameters=2**15 + 3)
    vector = np.zeros(2**15 + 3, np.float32)
    vector[place] = 0.8
    other = {BlockId("other"): np.array([0.59], np.float32)}
    noisy_words({BLOCK: vector, **other}, made, seeded_entropy(3, "pieces"))
    vector[1] = 0.2
    with pytest.raises(InputRefused, match=r"found a norm of 1\.01"):
        noisy_words({BLOCK: vector, **other}, made, seeded_entropy(3, "pieces"))


@pytest.mark.parametrize("bits", [16, 32])
def test_a_sum_that_would_just_reach_the_rings_half_gets_the_next_coarser_grid(bits: int) -> None:
    many = {"devices": 200, "threshold": 150, "bits": bits, "parameters": 1}
    made = sized(**many)
    step = made.terms.step
    largest = made.devices * made.terms.sensitivity + 8 * math.sqrt(made.devices) * made.share_sigma * step
    least = 2.0 ** (bits - 1) * step / largest
    assert sized(l2_clip_norm=0.999 * least, **many).terms.step == step
    assert sized(l2_clip_norm=least, **many).terms.step == 2 * step


@pytest.mark.parametrize("spare", [-1, 1])
def test_a_norm_may_come_as_near_to_its_bound_as_its_own_rounding(spare: int) -> None:
    """2^-32 of it: 2^20 squares are summed in float64. What is refused for it would not have been too long by much."""
    bound = 3 * (1 + 2.0**-32) + spare * 2.0**-50
    terms = NoiseTerms(l2_clip_norm=bound, noise_multiplier=8.0, colluders=0, step=1.0)
    mechanism = Mechanism(terms=terms, devices=4, threshold=4, bits=32, parameters=1)
    vectors = {BLOCK: np.array([3.0], np.float32)}
    if spare < 0:
        with pytest.raises(InputRefused, match="clipped"):
            noisy_words(vectors, mechanism, seeded_entropy(0, "near"))
    else:
        assert len(noisy_words(vectors, mechanism, seeded_entropy(0, "near"))[BLOCK]) == 1
