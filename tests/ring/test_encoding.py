"""Fixed point: sums of encoded vectors are sums of the vectors, within the stated bound; bad input never gets in."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.entropy import seeded_entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.ring import BlockEncoding, InputRefused, RingParams, SumOutOfRange, SumRange, bits_from

WIDTHS = st.sampled_from([8, 10, 12, 16, 21, 24, 32, 33, 48, 64])


def encoding(bits: int, addends: int, *ranges: tuple[int, float]) -> BlockEncoding:
    parts = tuple(SumRange(length=length, max_abs=max_abs) for length, max_abs in ranges)
    return BlockEncoding(params=RingParams(bits=bits, addends=addends), ranges=parts)


def rounding(seed: int = 0):
    return bits_from(seeded_entropy(seed, "rounding"))


@settings(deadline=None)
@given(
    bits=WIDTHS,
    devices=st.integers(2, 6),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_the_error_of_a_sum_stays_within_the_stated_bound(
    bits: int, devices: int, lengths: list[int], seed: int
) -> None:
    ranges = [(length, 0.01 * 7**i) for i, length in enumerate(lengths)]
    block = encoding(bits, devices, *ranges)
    rng = np.random.default_rng(seed)
    limit = np.concatenate([np.full(length, max_abs) for length, max_abs in ranges])
    inputs = [(rng.normal(0, 0.7, len(limit)) * limit).astype(np.float32) for _ in range(devices)]
    total = block.zeros()
    for index, vector in enumerate(inputs):
        total += block.encode(vector, rounding(seed + index))
    clipped = sum(np.clip(vector.astype(np.float64), -limit, limit) for vector in inputs)
    assert (np.abs(block.decode(total, devices) - clipped) < devices * limit / block.params.levels).all()


def test_rounding_is_unbiased_and_its_rms_is_half_a_step() -> None:
    block = encoding(8, 2, (20_000, 1.0))
    step = 1.0 / block.params.levels
    vector = np.random.default_rng(1).uniform(-1, 1, 20_000).astype(np.float32)
    errors = np.stack([block.decode(block.encode(vector, rounding(i)), 1) - vector for i in range(40)])
    # 800,000 draws of a step-sized uniform-ish error: the mean's own deviation is below step / 1700.
    assert abs(errors.mean()) < step / 400
    assert errors.std() <= step / 2
    assert np.abs(errors.mean(axis=0)).max() < step * 0.5


@given(bits=WIDTHS, devices=st.integers(2, 100))
@settings(deadline=None)
def test_every_device_at_either_boundary_still_decodes_exactly(bits: int, devices: int) -> None:
    if (1 << bits) - 1 < 2 * devices:
        return
    block = encoding(bits, devices, (3, 2.5))
    for sign in (1.0, -1.0):
        words = block.encode(np.full(3, sign * 1e9, np.float32), rounding())
        total = reduce(lambda a, b: a + b, [words] * devices)
        assert block.decode(total, devices) == pytest.approx(np.full(3, sign * 2.5 * devices), rel=1e-12)


@given(values=st.lists(st.lists(st.integers(-500, 500), min_size=4, max_size=4), min_size=2, max_size=5), bits=WIDTHS)
@settings(deadline=None)
def test_counts_are_summed_exactly(values: list[list[int]], bits: int) -> None:
    if RingParams(bits=bits, addends=5).levels < 500:
        return
    block = BlockEncoding(
        params=RingParams(bits=bits, addends=5), ranges=(SumRange(length=4, max_abs=500.0, exact=True),)
    )
    total = block.zeros()
    for row in values:
        total += block.encode(np.array(row, np.float32), rounding())
    assert np.array_equal(block.decode(total, len(values)), np.sum(values, axis=0))


@given(length=st.integers(1, 70_000), cut=st.floats(0, 1, exclude_max=True), bits=st.sampled_from([16, 21, 32]))
@settings(deadline=None, max_examples=25)
def test_where_a_range_ends_does_not_change_the_words(length: int, cut: float, bits: int) -> None:
    """Pieces, lanes and ranges are cut in different places; with whole values rounding has nothing to decide."""
    first = int(cut * length)
    whole = BlockEncoding(
        params=RingParams(bits=bits, addends=3), ranges=(SumRange(length=length, max_abs=90.0, exact=True),)
    )
    lengths = [part for part in (first, length - first) if part]
    cut_up = BlockEncoding(
        params=whole.params, ranges=tuple(SumRange(length=part, max_abs=90.0, exact=True) for part in lengths)
    )
    vector = np.random.default_rng(length).integers(-90, 91, length).astype(np.float32)
    words = whole.encode(vector, rounding())
    assert np.array_equal(words, cut_up.encode(vector, rounding()))
    assert np.array_equal(whole.decode(words, 1), vector)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_wherever_they_are(bad: float) -> None:
    block = encoding(32, 3, (40_000, 1.0))
    for place in (0, 16_384, 39_999):
        vector = np.zeros(40_000, np.float32)
        vector[place] = bad
        with pytest.raises(InputRefused, match="finite"):
            block.encode(vector, rounding())


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.float32),
        np.zeros(6, np.float32),
        np.zeros((5, 1), np.float32),
        np.zeros(5, np.int32),
        np.zeros(5, np.float16),
        [0.0] * 5,
    ],
)
def test_another_length_shape_or_dtype_is_refused(vector) -> None:
    with pytest.raises(InputRefused, match="Expected"):
        encoding(32, 3, (5, 1.0)).encode(vector, rounding())


@pytest.mark.parametrize("value", [0.5, 11.0, -11.0])
def test_a_count_that_is_a_fraction_or_too_large_is_refused_not_clipped(value: float) -> None:
    block = BlockEncoding(params=RingParams(bits=32, addends=3), ranges=(SumRange(length=1, max_abs=10.0, exact=True),))
    with pytest.raises(InputRefused, match="whole numbers"):
        block.encode(np.array([value], np.float32), rounding())


@pytest.mark.parametrize(
    "part",
    [
        SumRange(length=0, max_abs=1.0),
        SumRange(length=1, max_abs=0.0),
        SumRange(length=1, max_abs=-1.0),
        SumRange(length=1, max_abs=float("nan")),
        SumRange(length=1, max_abs=float("inf")),
        SumRange(length=1, max_abs=43.0, exact=True),
    ],
)
def test_a_range_that_cannot_be_encoded_cannot_be_made(part: SumRange) -> None:
    with pytest.raises(ConfigInvalid, match=r"ranges\[0\]"):
        BlockEncoding(params=RingParams(bits=8, addends=3), ranges=(part,))


def test_a_sum_of_more_vectors_than_the_ring_allows_is_not_decoded() -> None:
    block = encoding(32, 3, (5, 1.0))
    with pytest.raises(InputRefused, match="at most 3 addends"):
        block.decode(block.zeros(), 4)


@pytest.mark.parametrize("bits", [20, 32, 64])
def test_a_sum_that_no_honest_inputs_make_is_refused(bits: int) -> None:
    """A count above every limit; a coordinate of two vectors in a ring for ten, pushed beyond both ranges."""
    ranges = (SumRange(length=1, max_abs=100.0, exact=True), SumRange(length=3, max_abs=1.0))
    encoding = BlockEncoding(params=RingParams(bits=bits, addends=10), ranges=ranges)
    honest = encoding.encode(np.array([100.0, 1.0, -1.0, 0.0]), bits_from(seeded_entropy(0, "lie")))
    assert encoding.decode(honest + honest, 2)[0] == 200.0
    for lane, step in ((0, 101), (1, encoding.params.levels * 3)):
        word, place = lane % encoding.words, lane // encoding.words
        lie = honest.copy()
        lie[word] += np.array(step << (bits * place), lie.dtype)
        with pytest.raises(SumOutOfRange, match="no input encodes to"):
            encoding.decode(honest + lie, 2)
