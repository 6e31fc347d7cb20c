"""Secret sharing: t shares rebuild, t - 1 say nothing, and an independent implementation agrees."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.entropy import seeded_entropy
from fedpeft.errors import FedpeftError
from fedpeft.secagg.shamir import (
    COEFFICIENT_BYTES,
    PRIME,
    SHARE_SIZE,
    combine,
    combine_without,
    share_value,
    split,
    weights,
)

SECRET = st.binary(min_size=32, max_size=32)


def dealt(secrets: list[bytes], threshold: int, holders: list[int], seed: int = 0) -> dict[int, list[int]]:
    entropy = seeded_entropy(seed, "coefficients")
    coefficients = [entropy(COEFFICIENT_BYTES * (threshold - 1)) for _ in secrets]
    shares = split(secrets, threshold, holders, coefficients)
    return {
        holder: [int.from_bytes(text[i : i + SHARE_SIZE], "big") for i in range(0, len(text), SHARE_SIZE)]
        for holder, text in zip(holders, shares, strict=True)
    }


@settings(deadline=None)
@given(
    secrets=st.lists(SECRET, min_size=1, max_size=3),
    holders=st.lists(st.integers(1, 5000), min_size=1, max_size=30, unique=True),
    data=st.data(),
)
def test_threshold_shares_rebuild_the_secret(secrets: list[bytes], holders: list[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, len(holders)))
    shares = dealt(secrets, threshold, holders)
    chosen = tuple(data.draw(st.permutations(holders))[:threshold])
    for index, secret in enumerate(secrets):
        assert combine(weights(chosen), [shares[x][index] for x in chosen]) == secret


@given(secret=SECRET, other=SECRET, threshold=st.integers(2, 8), seed=st.integers(0, 99))
@settings(deadline=None)
def test_fewer_shares_than_the_threshold_fit_every_secret(
    secret: bytes, other: bytes, threshold: int, seed: int
) -> None:
    """t - 1 shares and any other secret lie on one polynomial of degree t - 1, which predicts another t-th share."""
    holders = list(range(1, threshold + 1))
    shares = {x: values[0] for x, values in dealt([secret], threshold, holders, seed).items()}
    del shares[threshold]
    points = {0: int.from_bytes(other, "big"), **shares}
    y = _lagrange_at(threshold, points)
    rebuilt = combine(weights(tuple(holders)), [*shares.values(), y])
    assert rebuilt == other


def test_one_wrong_share_gives_another_secret_or_none() -> None:
    shares = dealt([b"s" * 32], 3, [1, 2, 3])
    assert combine(weights((1, 2, 3)), [shares[1][0], shares[2][0], (shares[3][0] + 1) % PRIME]) != b"s" * 32


def test_an_independent_interpolation_in_the_rationals_agrees() -> None:
    """Small numbers and exact fractions: nothing of the code under test is used to check it."""
    secret, holders = (5).to_bytes(32, "big"), [1, 2, 4]
    coefficients = [(7).to_bytes(48, "big") + (3).to_bytes(48, "big")]  # y = 7 x^2 + 3 x + 5
    shares = split([secret], 3, holders, coefficients)
    assert [int.from_bytes(share, "big") for share in shares] == [15, 39, 129]
    total = Fraction(0)
    for x, share in zip(holders, shares, strict=True):
        term = Fraction(int.from_bytes(share, "big"))
        for m in holders:
            if m != x:
                term *= Fraction(m, m - x)
        total += term
    assert total == 5


def test_the_prime_is_the_smallest_above_two_to_the_256() -> None:
    def is_prime(n: int) -> bool:
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47):
            power = pow(base, odd, n)
            if power not in (1, n - 1) and all((power := power * power % n) != n - 1 for _ in range(twos - 1)):
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime((1 << 256) + offset) for offset in range(297))


@settings(deadline=None)
@given(holders=st.lists(st.integers(1, 10_000), min_size=3, max_size=20, unique=True), index=st.integers(0, 19))
def test_leaving_a_point_out_of_the_weights_gives_the_secret_of_the_others(holders: list[int], index: int) -> None:
    absent = holders[index % len(holders)]
    shares = dealt([b"s" * 32], len(holders) - 1, holders)
    values = {x: share[0] for x, share in shares.items() if x != absent}
    assert combine_without(tuple(holders), absent, values) == b"s" * 32


@pytest.mark.parametrize(("threshold", "holders"), [(0, [1, 2]), (3, [1, 2]), (2, [1, 1]), (2, [0, 1])])
def test_a_threshold_or_holder_that_makes_no_sense_is_refused(threshold: int, holders: list[int]) -> None:
    with pytest.raises(FedpeftError, match="Expected 1 <= threshold"):
        split([bytes(32)], threshold, holders, [bytes(COEFFICIENT_BYTES * max(threshold - 1, 0))])


@pytest.mark.parametrize("sizes", [[], [2], [2, 2, 2], [2, 1], [1, 2], [2, 3], [0, 0]])
def test_other_coefficients_than_one_text_a_secret_of_the_right_length_are_refused(sizes: list[int]) -> None:
    """Too few of them would leave a polynomial of a lower degree: fewer shares than the threshold would rebuild it."""
    coefficients = [bytes(COEFFICIENT_BYTES * size) for size in sizes]
    with pytest.raises(FedpeftError, match="Expected 2 times 96 coefficient bytes"):
        split([bytes(32)] * 2, 3, [1, 2, 3, 4], coefficients)


def test_a_share_outside_the_field_or_of_another_length_is_none() -> None:
    assert share_value((PRIME - 1).to_bytes(33, "big")) == PRIME - 1
    assert share_value(PRIME.to_bytes(33, "big")) is None
    assert share_value(b"\xff" * 33) is None
    assert share_value(bytes(32)) is None


def _lagrange_at(x: int, points: dict[int, int]) -> int:
    total = 0
    for xi, yi in points.items():
        term = yi
        for xj in points:
            if xj != xi:
                term = term * (x - xj) * pow(xi - xj, -1, PRIME) % PRIME
        total += term
    return total % PRIME
