"""Which connection goes when there are too many, and whose an address is."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft_server.origins import origin_of, site_of
from fedpeft_server.service.crowd import Crowd


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans())), st.integers(1, 6))
def test_the_oldest_of_the_fullest_origin_goes_and_the_rest_stay(steps: list[tuple[str, bool]], most: int) -> None:
    crowd, inside = Crowd[int](most), dict[int, str]()
    for number, (origin, leaves) in enumerate(steps):
        if leaves and inside:
            left = min(inside)
            crowd.leave(left)
            crowd.leave(left)
            del inside[left]
        before = dict(inside) | {number: origin}
        gone = crowd.enter(number, origin)
        if gone is not None:
            counts = {one: list(before.values()).count(one) for one in before.values()}
            assert counts[before[gone]] == max(counts.values())
            assert gone == min(one for one, whose in before.items() if whose == before[gone])
        inside = {one: whose for one, whose in before.items() if one != gone}
        assert list(crowd) == list(inside)
        assert len(crowd) == len(inside) == min(most, len(before))


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("2001:db8:1:ffff::1", "2001:db8:1::"),
        ("2001:db8:2::1", "2001:db8:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_whose_an_address_is(address: str, site: str) -> None:
    assert site_of(address).partition("%")[0] == site


def test_a_connection_that_is_gone_or_has_no_address_is_nobodys() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert origin_of(left) == ""
    assert origin_of(left) == ""
