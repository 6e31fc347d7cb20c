"""Degrees and thresholds: the numbers of the published analysis, and the properties they stand for."""

import itertools
import time
from collections.abc import Sequence
from fractions import Fraction
from math import comb

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft.cohorts import of_members
from fedpeft.secagg.graph import (
    COMPLETE_UP_TO,
    Degree,
    _log_missing,
    _log_tail,
    _tail,
    circle,
    masking_degree,
    neighbours,
    sharing_degree,
)

SHARING_AND_MASKING = {
    # (members, corrupt, dropout): sharing degree and threshold, masking degree and threshold of one of 20 such blocks.
    # The table of ../docs/protocol.md; computed apart from this code, in doubles, and compared here.
    (200, 0.05, 0.05): (20, 11, 42, 32),
    (1000, 0.05, 0.05): (40, 27, 74, 56),
    (200, 0.1, 0.1): (36, 21, 78, 59),
    (500, 0.1, 0.1): (56, 36, 116, 86),
    (1000, 0.1, 0.1): (64, 41, 134, 99),
    (3000, 0.1, 0.1): (72, 46, 158, 116),
    (10_000, 0.1, 0.1): (76, 48, 172, 126),
    (1000, 0.2, 0.1): (96, 66, 202, 157),
    (1000, 0.33, 0.1): (144, 107, 316, 257),
}


@pytest.mark.parametrize(("terms", "expected"), list(SHARING_AND_MASKING.items()))
def test_degrees_are_those_of_the_document(
    terms: tuple[int, float, float], expected: tuple[int, int, int, int]
) -> None:
    members, corrupt, dropout = terms
    assert sharing_degree(members, corrupt, dropout) == Degree(*expected[:2])
    assert masking_degree(members, members, corrupt, dropout, 20) == Degree(*expected[2:])


@pytest.mark.parametrize(("members", "expected"), [(100, (99, 67)), (20, (19, 13)), (5, (4, 3)), (3, (2, 2))])
def test_a_small_roster_shares_with_everybody(members: int, expected: tuple[int, int]) -> None:
    assert sharing_degree(members, 0.1, 0.1) == Degree(*expected)


@settings(deadline=None, max_examples=60)
@given(members=st.integers(3, 400), corrupt=st.floats(0, 0.4), dropout=st.floats(0, 0.3))
def test_a_threshold_can_be_reached_and_not_by_colluders(members: int, corrupt: float, dropout: float) -> None:
    degree = sharing_degree(members, corrupt, dropout)
    if degree is None:
        return
    assert 1 < degree.threshold <= degree.neighbours <= members - 1
    if members <= COMPLETE_UP_TO:
        assert degree.neighbours == members - 1
        assert degree.threshold > of_members(corrupt, members)


def test_fractions_that_so_few_devices_cannot_meet_are_refused() -> None:
    assert sharing_degree(3, 0.4, 0.1) is None
    assert sharing_degree(2, 0.1, 0.1) is None


def test_a_fraction_of_members_is_rounded_up_but_not_by_binary_fractions() -> None:
    assert of_members(0.07, 100) == 7  # 0.07 * 100 is 7.000000000000001
    assert of_members(0.1, 3) == 1
    assert of_members(0.0, 1000) == 0


def at_least(population: int, marked: int, drawn: int, threshold: int) -> Fraction:
    """P[``threshold`` or more of the drawn are marked], exactly, from the definition."""
    ways = sum(
        comb(marked, x) * comb(population - marked, drawn - x)
        for x in range(threshold, drawn + 1)
        if x <= marked and drawn - x <= population - marked
    )
    return Fraction(ways, comb(population, drawn))


@settings(deadline=None, max_examples=25)
@given(owners=st.integers(129, 700), corrupt=st.floats(0.01, 0.3), dropout=st.floats(0.01, 0.2))
def test_a_circle_is_cut_or_a_device_isolated_below_two_to_the_minus_eighty(
    owners: int, corrupt: float, dropout: float
) -> None:
    """All events of 20 such blocks, and of the sharing graph: exact fractions, written out anew."""
    colluding, gone, bound = of_members(corrupt, owners), of_members(dropout, owners), Fraction(1, 2**80)
    masking = masking_degree(owners, owners, corrupt, dropout, 20)
    sharing = sharing_degree(owners, corrupt, dropout)
    events = Fraction(0)
    if masking is not None:
        k, t = masking.neighbours, masking.threshold
        wall = at_least(owners, colluding, k // 2, t - k // 2)
        isolated = at_least(owners - 1, min(colluding, owners - 1), k, t)
        events += 20 * (owners * isolated + comb(owners, 2) * wall**2)
        assert owners * (1 - at_least(owners - 1, owners - 1 - gone, k, t)) <= Fraction(1, 2**20)
    if sharing is not None and sharing.neighbours < owners - 1:
        k, t = sharing.neighbours, sharing.threshold
        events += owners * at_least(owners - 1, min(colluding, owners - 1), k, t)
        assert owners * (1 - at_least(owners - 1, owners - 1 - gone, k, t)) <= Fraction(1, 2**20)
    assert events <= bound


@settings(deadline=None, max_examples=15)
@given(owners=st.integers(129, 260), corrupt=st.floats(0.01, 0.2), dropout=st.floats(0.01, 0.2))
def test_no_smaller_degree_would_do(owners: int, corrupt: float, dropout: float) -> None:
    """The floating-point screen skips nothing that the integers would accept."""
    colluding, gone = of_members(corrupt, owners), of_members(dropout, owners)
    found = sharing_degree(owners, corrupt, dropout)
    for k in range(2, (found.neighbours if found else owners) - 1, 2):
        safe = [t for t in range(2, k + 1) if owners * at_least(owners - 1, colluding, k, t) <= Fraction(1, 2**81)]
        live = bool(safe) and owners * (1 - at_least(owners - 1, owners - 1 - gone, k, safe[0])) <= Fraction(1, 2**20)
        assert not live, (k, safe)


@pytest.mark.parametrize(
    ("members", "colluding", "gone", "expected"),
    [
        (130, 64, 63, Degree(128, 65)),  # the largest degree that a circle of so many has: all but one
        (130, 64, 64, Degree(129, 97)),  # one more gone, and none is left but all with all
        (131, 64, 63, Degree(128, 65)),
        (131, 64, 65, Degree(130, 98)),
        (200, 0, 196, Degree(198, 2)),
    ],
)
def test_sharing_with_all_but_one_is_taken_where_nothing_less_would_do(
    members: int, colluding: int, gone: int, expected: Degree
) -> None:
    """So many collude and drop out that only numbers decide: one honest share beside theirs must always remain."""
    assert sharing_degree(members, colluding / members, gone / members) == expected


@settings(deadline=None, max_examples=60)
@given(
    owners=st.integers(129, 200),
    corrupt=st.sampled_from([0.0, 0.005, 0.02]),
    dropout=st.sampled_from([0.0, 0.01, 0.05]),
    blocks=st.sampled_from([1, 2, 3, 20]),
)
@example(owners=500, corrupt=0.005, dropout=0.0, blocks=1)  # as low as the fewest colluders go
@example(owners=1000, corrupt=0.0, dropout=0.0, blocks=1)
@example(owners=133, corrupt=0.13, dropout=0.1, blocks=1)  # the largest degree that a circle of so many has
@example(owners=132, corrupt=0.13, dropout=0.1, blocks=1)  # one more would do, and is no less than a half
def test_masking_takes_the_least_degree_and_threshold_that_are_safe_and_live(
    owners: int, corrupt: float, dropout: float, blocks: int
) -> None:
    colluding, gone = of_members(corrupt, owners), of_members(dropout, owners)
    bound = Fraction(1, 2 ** (82 + (blocks - 1).bit_length()))  # for each of the two events, in each block

    def least(k: int) -> int:
        half = k // 2
        isolated = next(t for t in range(k + 2) if owners * at_least(owners - 1, colluding, k, t) <= bound)
        wall = next(a for a in range(half + 2) if comb(owners, 2) * at_least(owners, colluding, half, a) ** 2 <= bound)
        return max(isolated, half + wall)

    def live(k: int, t: int) -> bool:
        return t <= k and owners * (1 - at_least(owners - 1, owners - 1 - gone, k, t)) <= Fraction(1, 2**20)

    expected = next((Degree(k, least(k)) for k in range(4, (owners - 1) // 2 + 1, 2) if live(k, least(k))), None)
    assert masking_degree(owners, owners, corrupt, dropout, blocks) == expected


@pytest.mark.parametrize("count", range(2, 9))
def test_a_degree_that_reaches_all_joins_everybody_to_everybody(count: int) -> None:
    order = circle(b"seed", range(1, count + 1))
    for member in order:
        others = tuple(sorted(set(order) - {member}))
        assert neighbours(order, member, count - 1) == neighbours(order, member, count + 5) == others


def test_a_block_owned_by_few_of_many_is_masked_by_all_its_owners() -> None:
    assert masking_degree(128, 10_000, 0.1, 0.1, 1) is None
    # 200 owners of 1000 members, 100 of whom may collude and own this block: no circle is safe.
    assert masking_degree(200, 1000, 0.1, 0.1, 1) is None


def test_the_search_for_a_degree_ends_soon_whatever_the_roster() -> None:
    """A coordinator chooses the roster; a device must not compute for minutes before it refuses."""
    started = time.process_time()
    assert masking_degree(50_000, 50_000, 0.45, 0.45, 1) is None
    assert sharing_degree(50_000, 0.45, 0.45) is None
    assert time.process_time() - started < 5


def arcs(survivors: Sequence[int], owners: int, half: int) -> int:
    """Into how many pieces the honest survivors of a circle fall, each joined to those at most ``half`` away."""
    gaps = zip(survivors, [*survivors[1:], survivors[0] + owners], strict=True)
    return max(1, sum(after - before > half for before, after in gaps))


def test_lemma_by_enumeration() -> None:
    """Every circle of 8 to 10 owners, every colluder set of up to 4, every survivor set that passes the rule.

    Either the honest survivors hang together, or two disjoint stretches of k/2 owners hold t - k/2 colluders each.
    """
    admissible = cuts = 0
    for owners, half in itertools.product((8, 9, 10), (2, 3)):
        for count in range(5):
            for colluders in itertools.combinations(range(owners), count):
                if colluders and colluders[0] != 0:
                    continue  # a rotation of another one
                honest = [place for place in range(owners) if place not in colluders]
                heavy = [sum((place + step) % owners in colluders for step in range(half)) for place in range(owners)]
                for survivors in itertools.chain.from_iterable(
                    itertools.combinations(honest, size) for size in range(1, len(honest) + 1)
                ):
                    alive = {*survivors, *colluders}
                    steps = [step for step in range(-half, half + 1) if step]
                    least = min(sum((v + step) % owners in alive for step in steps) for v in survivors)
                    for threshold in range(half + 1, least + 1):
                        admissible += 1
                        walls = [place for place in range(owners) if heavy[place] >= threshold - half]
                        apart = any(
                            min((a - b) % owners, (b - a) % owners) >= half for a, b in itertools.combinations(walls, 2)
                        )
                        if arcs(survivors, owners, half) > 1:
                            cuts += 1
                            assert apart, (owners, half, threshold, colluders, survivors)
    assert admissible > 10_000
    assert cuts > 100, "an enumeration without a single cut would show nothing"


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


def test_few_colluders_need_few_neighbours_and_a_whole_circle_of_them_alive() -> None:
    """One colluder among 129: four neighbours, of whom two hide a device, and of whom all must remain against walls."""
    assert masking_degree(129, 129, 0.005, 0.0, 1) == Degree(4, 4)


@pytest.mark.parametrize("members", [129, 200, 1000])
def test_no_single_share_is_a_secret_though_nobody_is_taken_to_collude(members: int) -> None:
    degree = sharing_degree(members, 0.0, 0.1)
    assert degree is not None
    assert degree.threshold >= 2


def test_up_to_the_bound_everybody_shares_with_everybody_and_one_more_may_share_with_few() -> None:
    assert sharing_degree(COMPLETE_UP_TO, 0.01, 0.01) == Degree(COMPLETE_UP_TO - 1, 85)
    few = sharing_degree(COMPLETE_UP_TO + 1, 0.01, 0.01)
    assert few is not None
    assert few.neighbours < COMPLETE_UP_TO


@pytest.mark.parametrize(("population", "marked", "drawn"), [(200, 20, 30), (50, 3, 10), (40, 39, 20), (30, 0, 4)])
def test_estimated_tails_are_the_exact_ones(population: int, marked: int, drawn: int) -> None:
    exact = [Fraction(ways, comb(population, drawn)) for ways in _tail(population, marked, drawn)]
    found = [2.0**bits for bits in _log_tail(population, marked, drawn)]
    assert found == pytest.approx([float(one) for one in exact], rel=1e-9, abs=0)


@pytest.mark.parametrize(("n", "dropped", "k", "threshold"), [(200, 20, 30, 20), (500, 25, 40, 30), (64, 6, 10, 5)])
def test_the_estimate_of_too_few_that_remain_is_the_exact_one(n: int, dropped: int, k: int, threshold: int) -> None:
    ways = comb(n - 1, k)
    missing = Fraction(n * (ways - _tail(n - 1, n - 1 - dropped, k)[threshold]), ways)
    assert 2.0 ** _log_missing(n, dropped, k, threshold) == pytest.approx(float(missing), rel=1e-9, abs=0)
