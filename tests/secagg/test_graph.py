"""Degrees and thresholds: the numbers of the published analysis, and the properties they stand for."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.secagg.graph import COMPLETE_UP_TO, Degree, circle, masking_degree, neighbours, sharing_degree
from fedpeft.secagg.spec import Mode


@pytest.mark.parametrize(
    ("members", "mode", "corrupt", "dropout", "expected"),
    [  # research/secagg.md, section 3; the first two rows are Bell et al.'s semi-honest setting
        (1000, Mode.FAST, 0.1, 0.1, Degree(46, 26)),
        (10_000, Mode.FAST, 0.1, 0.1, Degree(54, 30)),
        (1000, Mode.FULL, 0.1, 0.1, Degree(120, 87)),
        (1000, Mode.FULL, 0.2, 0.1, Degree(178, 136)),
        (1000, Mode.FULL, 0.33, 0.1, Degree(272, 218)),
        (10_000, Mode.FULL, 0.1, 0.1, Degree(156, 113)),
        (100, Mode.FULL, 0.1, 0.1, Degree(99, 67)),
        (3, Mode.FULL, 0.1, 0.1, Degree(2, 2)),
        (5, Mode.FULL, 0.1, 0.1, Degree(4, 3)),
    ],
)
def test_degree_and_threshold_are_those_of_the_analysis(
    members: int, mode: Mode, corrupt: float, dropout: float, expected: Degree
) -> None:
    assert sharing_degree(members, mode, corrupt, dropout) == expected


@settings(deadline=None, max_examples=60)
@given(
    members=st.integers(3, 400),
    mode=st.sampled_from(Mode),
    corrupt=st.floats(0, 0.4),
    dropout=st.floats(0, 0.3),
)
def test_two_survivor_sets_can_never_both_gather_a_threshold(
    members: int, mode: Mode, corrupt: float, dropout: float
) -> None:
    degree = sharing_degree(members, mode, corrupt, dropout)
    if degree is None:
        return
    assert 1 < degree.threshold <= degree.neighbours <= members - 1
    if members <= COMPLETE_UP_TO:
        colluding = math.ceil(corrupt * members)
        assert degree.neighbours == members - 1
        assert 2 * degree.threshold > degree.neighbours + colluding
        assert degree.threshold > colluding


def test_fractions_that_so_few_devices_cannot_meet_are_refused() -> None:
    assert sharing_degree(3, Mode.FULL, 0.4, 0.1) is None
    assert sharing_degree(2, Mode.FULL, 0.1, 0.1) is None


@settings(deadline=None, max_examples=30)
@given(owners=st.integers(129, 3000), corrupt=st.floats(0.01, 0.3), dropout=st.floats(0.01, 0.3))
def test_a_masking_graph_is_cut_with_probability_below_two_to_the_minus_forty(
    owners: int, corrupt: float, dropout: float
) -> None:
    degree = masking_degree(owners, owners, Mode.FAST, corrupt, dropout)
    if degree is not None:
        assert degree % 2 == 0
        assert math.comb(owners, 2) * (corrupt + dropout) ** degree <= 2.0**-40


def test_a_block_owned_by_few_of_many_is_masked_by_all_its_owners() -> None:
    assert masking_degree(128, 10_000, Mode.FULL, 0.1, 0.1) is None
    # 200 owners of 1000 members, 200 of whom may be bad: the worst case leaves no good owner.
    assert masking_degree(200, 1000, Mode.FULL, 0.1, 0.1) is None


@given(st.integers(3, 200), st.integers(1, 40), st.binary(min_size=32, max_size=32))
def test_neighbourhood_is_mutual_and_has_the_stated_degree(members: int, half: int, seed: bytes) -> None:
    order = circle(seed, range(1, members + 1))
    assert sorted(order) == list(range(1, members + 1))
    joined = {member: neighbours(order, member, 2 * half) for member in order}
    for member, around in joined.items():
        assert len(around) == min(2 * half, members - 1)
        assert member not in around
        assert list(around) == sorted(around)
        assert all(member in joined[other] for other in around)


def test_another_roster_gives_another_circle() -> None:
    assert circle(b"a" * 32, range(1, 50)) != circle(b"b" * 32, range(1, 50))
