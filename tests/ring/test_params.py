"""RingParams: overflow is impossible because parameters that allow it cannot be made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import ConfigInvalid
from fedpeft.ring import MAX_LEVELS, RingParams


@given(bits=st.integers(8, 64), addends=st.integers(2, 1 << 20))
def test_a_sum_of_all_addends_at_the_boundary_never_overflows(bits: int, addends: int) -> None:
    if (1 << bits) - 1 < 2 * addends:
        with pytest.raises(ConfigInvalid):
            RingParams(bits=bits, addends=addends)
        return
    ring = RingParams(bits=bits, addends=addends)
    assert 2 * ring.levels * addends < 1 << bits
    # And no level is wasted, unless the float64 limit says so.
    assert ring.levels == MAX_LEVELS or 2 * (ring.levels + 1) * addends >= 1 << bits


@pytest.mark.parametrize(("bits", "addends"), [(7, 3), (65, 3), (8, 1), (8, 200), (32, (1 << 20) + 1)])
def test_parameters_that_would_overflow_are_refused_with_a_remedy(bits: int, addends: int) -> None:
    with pytest.raises(ConfigInvalid, match="expected"):
        RingParams(bits=bits, addends=addends)


def test_the_problem_names_the_bits_that_would_do() -> None:
    with pytest.raises(ConfigInvalid, match=r"bits >= 9 for 200 addends, found bits=8"):
        RingParams(bits=8, addends=200)
    assert RingParams(bits=9, addends=200).levels == 1


@pytest.mark.parametrize(
    ("bits", "size"), [(8, 1.0), (10, 8 / 6), (12, 1.6), (16, 2.0), (21, 8 / 3), (32, 4.0), (40, 8.0), (64, 8.0)]
)
def test_a_coordinate_takes_as_many_bytes_as_stated(bits: int, size: float) -> None:
    assert RingParams(bits=bits, addends=3).size_bytes(960_000) / 960_000 == pytest.approx(size)


@pytest.mark.parametrize(
    ("bits", "word"), [(8, "<u1"), (16, "<u2"), (21, "<u8"), (32, "<u4"), (33, "<u8"), (64, "<u8")]
)
def test_words_are_little_endian_and_unsigned(bits: int, word: str) -> None:
    assert RingParams(bits=bits, addends=3).word == np.dtype(word)


@pytest.mark.parametrize("bits", range(8, 65))
def test_a_word_holds_its_lanes_whole_and_no_further_one_would_fit(bits: int) -> None:
    ring = RingParams(bits=bits, addends=2)
    room = 8 * ring.word.itemsize
    assert ring.lanes * bits <= room < (ring.lanes + 1) * bits


def test_a_level_and_its_rounding_fraction_fill_the_bits_of_a_float64_that_are_exact() -> None:
    assert 2 * MAX_LEVELS * 2**17 == 2**53


def test_as_many_addends_as_are_allowed_are_accepted() -> None:
    assert RingParams(bits=32, addends=1 << 20).levels == 2047


@pytest.mark.parametrize(("bits", "addends"), [(16, 0), (7, 2), (65, 2)])
def test_what_is_out_of_range_is_one_problem_and_not_also_a_ring_without_room(bits: int, addends: int) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        RingParams(bits=bits, addends=addends)
    assert [problem.where for problem in refused.value.problems] == ["bits" if addends == 2 else "addends"]
