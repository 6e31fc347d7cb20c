import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.ids import BlockId
from fedpeft.privacy import Clipped, clip, l2_norm, rounding_allowance
from fedpeft.ring import InputRefused

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
blocks = st.lists(hnp.arrays(np.float32, st.integers(0, 40), elements=finite), min_size=1, max_size=5).map(
    lambda arrays: {BlockId(f"b{index}"): array for index, array in enumerate(arrays)}
)


def concatenated(vectors: dict[BlockId, np.ndarray]) -> np.ndarray:
    return np.concatenate([vector.astype(np.float64) for vector in vectors.values()])


@given(blocks, st.floats(1e-3, 1e3), st.floats(0, 0.9))
@settings(max_examples=150, deadline=None)
def test_the_concatenated_norm_never_exceeds_the_bound(
    vectors: dict[BlockId, np.ndarray], norm: float, part: float
) -> None:
    clipped = clip(vectors, l2_clip_norm=norm, allowance=part * norm)
    assert clipped.l2_norm_bound == norm - part * norm
    assert np.linalg.norm(concatenated(dict(clipped.vectors))) <= norm - part * norm


def test_a_scale_that_is_no_normal_float32_is_rounded_down() -> None:
    """Found by the test above: 1.2e-39 has few digits as a float32, and rounded to nearest it was too large."""
    clipped = clip({BlockId("b0"): np.array([5.2053775e37], np.float32)}, l2_clip_norm=0.125, allowance=0.0625)
    assert clipped.scale * 5.2053775e37 <= 0.0625
    assert 0.06249 < float(clipped.vectors[BlockId("b0")][0]) <= 0.0625


@given(blocks, st.floats(0.1, 10), st.integers(8, 24))
@settings(max_examples=150, deadline=None)
def test_rounding_after_the_clip_stays_within_the_clip_norm(
    vectors: dict[BlockId, np.ndarray], norm: float, fineness: int
) -> None:
    """The adversarial pair: the worst change of a rounded contribution, against nothing at all."""
    step = 2.0**-fineness
    allowance = rounding_allowance(step, sum(map(len, vectors.values())))
    clipped = clip(vectors, l2_clip_norm=norm, allowance=allowance)
    assert np.linalg.norm(np.rint(concatenated(dict(clipped.vectors)) / step) * step) <= norm


def test_many_blocks_share_one_norm() -> None:
    vectors = {BlockId(f"layer{index}"): np.ones(1, np.float32) for index in range(24)}
    clipped = clip(vectors, l2_clip_norm=1.0)
    assert l2_norm(clipped.vectors) == pytest.approx(1.0, abs=1e-6)
    assert l2_norm({BlockId("layer0"): clipped.vectors[BlockId("layer0")]}) == pytest.approx(
        1 / math.sqrt(24), abs=1e-6
    )


def test_a_short_contribution_is_returned_bit_for_bit() -> None:
    vector = np.array([0.1, -0.2, 1e-42], np.float32)
    clipped = clip({BlockId("b"): vector}, l2_clip_norm=1.0)
    assert clipped.vectors[BlockId("b")].tobytes() == vector.tobytes()
    assert clipped.scale == 1.0


@pytest.mark.parametrize(("coordinates", "norm"), [([2.0], 2.0), ([3.0, 4.0], 5.0)])
def test_a_long_contribution_is_shortened_to_the_bound_less_four_units_of_float32(
    coordinates: list[float], norm: float
) -> None:
    """Known answers: half the bound is a float32 and stays as it is, a fifth is not and is rounded down."""
    exact = (1 - 2**-22) / norm
    clipped = clip({BlockId("b"): np.array(coordinates, np.float32)}, l2_clip_norm=1.0)
    assert exact * (1 - 2**-24) < clipped.scale <= exact
    assert clipped.scale == exact or norm == 5.0


@pytest.mark.parametrize("length", [2**15 - 1, 2**15, 2**15 + 1, 2**16 + 3])
def test_the_norm_counts_every_coordinate_once_however_long_a_block_is(length: int) -> None:
    vector = np.zeros(length, np.float32)
    vector[[0, 1, -2, -1]] = 2.0
    assert l2_norm({BlockId("long"): vector, BlockId("short"): np.array([3.0], np.float32)}) == 5.0


def test_rounding_lengthens_by_half_a_step_times_the_root_of_the_coordinates() -> None:
    assert rounding_allowance(0.25, 16) == 0.5
    vector = np.full(16, 0.125, np.float32)  # halfway between two points of the grid: the worst case
    assert np.linalg.norm(np.floor(vector / 0.25 + 0.5) * 0.25 - vector) == rounding_allowance(0.25, 16)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputRefused, match="NaN or inf"):
        clip({BlockId("b"): np.array([1.0, value], np.float32)}, l2_clip_norm=1.0)


def test_only_clip_makes_a_clipped_contribution() -> None:
    with pytest.raises(TypeError, match="call clip"):
        Clipped({}, 1.0, 1.0, object())


@pytest.mark.parametrize(
    ("norm", "allowance"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, 1.0), (1.0, -0.1)]
)
def test_a_bound_out_of_range_is_refused(norm: float, allowance: float) -> None:
    with pytest.raises(ValueError, match="allowance"):
        clip({}, l2_clip_norm=norm, allowance=allowance)
