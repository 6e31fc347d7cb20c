"""One view: a root and a path say of the adverts that a device sees what the list of all of them said."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.secagg.primitives import digest
from fedpeft.secagg.transcript import NeighbourKeys, advert_tree, path_in, root_of


def leaves_of(count: int) -> list[bytes]:
    return [digest("leaf", bytes([place])) for place in range(count)]


def by_hand(leaves: list[bytes]) -> bytes:
    """The definition of docs/protocol.md, as a recursion from the top."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return digest("node", by_hand(leaves[:half]), by_hand(leaves[half:]))


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33, 100])
def test_the_root_is_that_of_the_definition(count: int) -> None:
    assert advert_tree(leaves_of(count))[-1] == [by_hand(leaves_of(count))]


@pytest.mark.parametrize("count", range(1, 8))
def test_whoever_knows_some_leaves_and_their_path_gets_the_root(count: int) -> None:
    leaves = leaves_of(count)
    levels = advert_tree(leaves)
    for known in range(1, count + 1):
        for places in combinations(range(count), known):
            path = path_in(levels, places)
            assert root_of({place: leaves[place] for place in places}, count, path) == levels[-1][0]


def test_who_knows_all_leaves_needs_no_path() -> None:
    assert path_in(advert_tree(leaves_of(129)), range(129)) == b""


@given(st.data())
def test_another_leaf_place_number_or_path_gives_another_root_or_none(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    leaves = leaves_of(count)
    levels = advert_tree(leaves)
    places = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count)))
    known, path, root = {place: leaves[place] for place in places}, path_in(levels, places), levels[-1][0]
    assert root_of(known, count, path) == root
    one = data.draw(st.sampled_from(places))
    assert root_of({**known, one: bytes(32)}, count, path) != root
    assert root_of(known, count, path + bytes(32)) is None
    assert root_of(known, count, path + b"x") is None
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert root_of(known, count, path[:at] + bytes([path[at] ^ 1]) + path[at + 1 :]) != root
        assert root_of(known, count, path[:at]) is None
    other = next((place for place in range(count) if place not in known), None)
    if other is not None:
        moved = {other if place == one else place: leaf for place, leaf in known.items()}
        assert root_of(moved, count, path) != root


def test_a_node_never_stands_for_a_leaf() -> None:
    """Three leaves, the first of which is the parent of two others, are not the four leaves of the same root."""
    leaves = leaves_of(4)
    levels = advert_tree(leaves)
    shorter = [levels[1][0], leaves[2], leaves[3]]
    assert advert_tree(shorter)[-1] != levels[-1]


def test_keys_travel_in_160_bytes() -> None:
    keys = NeighbourKeys(channel_key=b"c" * 32, mask_key=b"m" * 32, commitments=b"h" * 32, signature=b"s" * 64)
    assert keys.pack() == b"c" * 32 + b"m" * 32 + b"h" * 32 + b"s" * 64
    assert NeighbourKeys.unpack(keys.pack()) == keys
    assert NeighbourKeys.SIZE == len(keys.pack()) == 160
