"""Wrong shares are repaired around, and whoever gave them is named; what cannot be repaired is not guessed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.entropy import seeded_entropy
from fedpeft.secagg.repair import repair
from fedpeft.secagg.shamir import COEFFICIENT_BYTES, PRIME, split

SECRET = b"the dealer's committed secret..."


def shares(holders: int, threshold: int) -> dict[int, int]:
    coefficients = [seeded_entropy(1, "c")(COEFFICIENT_BYTES * (threshold - 1))]
    dealt = split([SECRET], threshold, range(1, holders + 1), coefficients)
    return {x: int.from_bytes(share, "big") for x, share in enumerate(dealt, 1)}


def is_right(guess: bytes) -> bool:
    return guess == SECRET


@settings(deadline=None, max_examples=40)
@given(threshold=st.integers(2, 10), spare=st.integers(2, 10), data=st.data())
def test_as_many_wrong_shares_as_half_the_spare_ones_are_found_and_named(
    threshold: int, spare: int, data: st.DataObject
) -> None:
    given_shares = shares(threshold + spare, threshold)
    wrong = data.draw(st.sets(st.sampled_from(sorted(given_shares)), max_size=spare // 2))
    for holder in wrong:
        given_shares[holder] = data.draw(st.integers(0, PRIME - 1).filter(lambda y, h=holder: y != given_shares[h]))
    found = repair(given_shares, threshold, is_right)
    assert found is not None
    assert found.secret == SECRET
    assert found.wrong == wrong


@pytest.mark.parametrize("wrong", range(1, 6))
def test_one_spare_share_is_enough_to_leave_one_wrong_share_out(wrong: int) -> None:
    given_shares = shares(5, 4)
    given_shares[wrong] = 123
    found = repair(given_shares, 4, is_right)
    assert found is not None
    assert found.secret == SECRET


def test_too_many_wrong_shares_give_none_rather_than_a_guess() -> None:
    given_shares = shares(5, 4)
    given_shares[1], given_shares[2] = 1, 2
    assert repair(given_shares, 4, is_right) is None


def test_shares_of_a_number_that_is_no_secret_of_32_bytes_give_none() -> None:
    """A dealer may share any element of the field; a few of them do not fit into 32 bytes."""
    for number in (1 << 256, PRIME - 1):
        assert repair(dict.fromkeys(range(1, 7), number), 4, lambda _: True) is None


def test_fewer_shares_than_the_threshold_give_none() -> None:
    assert repair({1: 5, 2: 6}, 3, lambda _: True) is None


def test_a_malicious_dealer_cannot_make_it_run_for_long() -> None:
    """Shares on no polynomial at all: bounded work, then none."""
    tries = 0

    def count(_: bytes) -> bool:
        nonlocal tries
        tries += 1
        return False

    assert repair({x: x**50 % PRIME for x in range(1, 41)}, 20, count) is None
    assert tries <= 501


def test_the_secret_does_not_show_in_the_repr() -> None:
    found = repair(shares(4, 2), 2, is_right)
    assert found is not None
    assert "committed" not in repr(found)


def test_equal_shares_are_those_of_a_constant_and_a_wrong_one_among_them_is_named() -> None:
    """A dealer may draw coefficients of zero; honest ones do once in 2^256."""
    dealt = dict.fromkeys(range(1, 8), int.from_bytes(SECRET, "big")) | {3: 5}
    found = repair(dealt, 4, is_right)
    assert found is not None
    assert (found.secret, found.wrong) == (SECRET, frozenset({3}))
