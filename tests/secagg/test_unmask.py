"""From revealed shares to sums: which shares are read, how many are enough, and who is named."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import Aborted, CoordinatorState, Open, Reason, Summed, SummedBlock, close_stage, receive, unmask
from fedpeft.secagg.primitives import authenticate
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.transcript import STAGE_REVEAL, advert_digest
from fedpeft.secagg.unmask import _blamed
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

# Nine devices on a complete graph: eight holders of each secret, six of which are enough.
DEVICES, ENOUGH = 9, 6
B = BlockId("b")
WRONG = (5).to_bytes(SHARE_SIZE, "big")
NO_SHARE = b"\xff" * SHARE_SIZE

Shares = Mapping[tuple[int, int, int], bytes]
"""By holder, dealer and block: what the holder reveals in place of its share."""


def a_round(blocks: int = 1, **changes: object) -> Round:
    fleet = make_fleet(DEVICES)
    ranges = (SumRange(length=DEVICES, max_abs=1.0, exact=True),)
    of = [SummedBlock(block_id=BlockId("b" if blocks == 1 else f"b{i}"), ranges=ranges) for i in range(blocks)]
    return Round(fleet=fleet, spec=make_spec(fleet, of, **changes))


def outcome(
    a: Round, changed: Shares | None = None, *, silent: Collection[int] = (), gone: Collection[int] = ()
) -> CoordinatorState:
    """The round's end: some reveal other shares, some reveal nothing, some drop out before they upload."""
    state: CoordinatorState = a.open()
    while isinstance(state, Open) and state.stage != "reveal":
        now: CoordinatorState = state
        for member, request in state.requests.items():
            if state.stage in ("fit", "share") or member not in gone:
                now = receive(now, member, a.ask(member, request))
        state = close_stage(now)
    assert isinstance(state, Open)
    now, blocks = state, len(a.spec.blocks)
    for member, request in state.requests.items():
        if member in silent:
            continue
        key = a.fleet.ledgers[member].load("run").reply_key.value  # type: ignore[union-attr]
        reply = a.ask(member, request)
        shares = bytearray(reply.shares)  # type: ignore[union-attr]
        dealers = [one for one in range(1, DEVICES + 1) if one != member]
        for (holder, dealer, block), share in (changed or {}).items():
            if holder == member:
                at = SHARE_SIZE * (blocks * dealers.index(dealer) + block)
                shares[at : at + SHARE_SIZE] = share
        tag = authenticate(key, STAGE_REVEAL, [reply.context, reply.opened, bytes(shares)])  # type: ignore[union-attr]
        now = receive(now, member, replace(reply, shares=bytes(shares), tag=tag))  # type: ignore[arg-type]
    return close_stage(now)


def is_everybodys_sum(state: CoordinatorState) -> bool:
    return isinstance(state, Summed) and all(
        np.array_equal(one.values, np.ones(DEVICES)) for one in state.sums.values()
    )


@pytest.mark.parametrize(
    "unread",
    [
        # Of the first seven points, 2 is the dealer's own: holder 8's share of its secret is one too many.
        {(8, 2, 0): WRONG},
        {(7, 9, 0): WRONG, (8, 9, 0): WRONG},
        {(8, 2, 0): NO_SHARE},
        {},
    ],
)
def test_no_more_shares_are_read_than_are_enough_and_nothing_is_repaired(
    unread: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmask, "repair", None)
    state = outcome(a_round(), unread)
    assert is_everybodys_sum(state)
    assert state.rejected == {}


@pytest.mark.parametrize("dealer", [2, 9])
def test_exactly_enough_shares_open_what_others_spoil_with_words_that_are_no_shares(dealer: int) -> None:
    spoilt = {(holder, dealer, 0): NO_SHARE for holder in (1, 3)}
    assert is_everybodys_sum(outcome(a_round(), spoilt))
    lost = outcome(a_round(), spoilt | {(5, dealer, 0): NO_SHARE})
    assert isinstance(lost, Aborted)
    assert (lost.reason, lost.blamed, lost.restartable) == (Reason.SECRET_LOST, {dealer}, False)


def test_exactly_enough_holders_open_a_secret_and_one_fewer_does_not() -> None:
    # Holders of 2's seed that reveal: 1, 3, 4, 5, 6, 7; the silent two have six holders and more.
    assert is_everybodys_sum(outcome(a_round(), silent=(8, 9)))
    assert isinstance(outcome(a_round(), silent=(7, 8, 9)), Aborted)
    # With none to spare a wrong share cannot be repaired around.
    lost = outcome(a_round(), {(1, 2, 0): WRONG}, silent=(8, 9))
    assert isinstance(lost, Aborted)
    assert lost.blamed == {2, 8, 9}, "and the silent"


def test_one_wrong_share_of_eight_is_named_with_its_holder_and_dealer_and_changes_nothing() -> None:
    state = outcome(a_round(), {(1, 2, 0): WRONG})
    assert is_everybodys_sum(state)
    assert state.rejected.keys() == {1, 2}, "nobody can say which of the two it was"
    assert all(one.reason is Reason.BAD_SHARE for one in state.rejected.values())


def test_a_block_whose_shares_are_spoilt_stays_masked_and_the_others_are_opened() -> None:
    spoilt = {(holder, 2, 0): NO_SHARE for holder in (1, 3, 5)}
    state = outcome(a_round(2), spoilt)
    assert isinstance(state, Summed)
    assert state.sums.keys() == {"b1"}
    assert is_everybodys_sum(state)
    assert state.skipped == {"b0": "too few good shares of the masks of [2]"}


@pytest.mark.parametrize("blocks", [8, 9])
def test_the_bits_of_opened_blocks_fill_whole_bytes(blocks: int) -> None:
    state = outcome(a_round(blocks))
    assert is_everybodys_sum(state)
    assert len(state.sums) == blocks


@pytest.mark.parametrize("gone", [(1,), (9,), (4,)])
def test_the_masks_of_the_gone_are_removed_from_both_sides_of_them(gone: tuple[int, ...]) -> None:
    state = outcome(a_round(), gone=gone)
    assert isinstance(state, Summed)
    assert list(state.sums[B].values) == [float(i not in gone) for i in range(1, DEVICES + 1)]
    assert state.sums[B].members == state.survivors == set(range(1, DEVICES + 1)) - set(gone)
    assert state.weight_classes.keys() == state.survivors


def test_a_low_order_mask_key_of_a_survivor_does_not_stop_the_coordinator() -> None:
    """Its sum is wrong, as any that it takes part in can be; the round ends."""
    a, bad = a_round(), ParticipantId(2)
    state: CoordinatorState = a.open()
    now: CoordinatorState = state
    for member, request in state.requests.items():
        reply = a.ask(member, request)
        if member == bad:
            forged = replace(reply, mask_key=bytes(32))
            reply = replace(forged, signature=a.fleet.identities[bad - 1].sign(advert_digest(forged)))
            a.fleet.ledgers[bad].save("run", replace(a.fleet.ledgers[bad].load("run"), reply=reply))
        now = receive(now, member, reply)
    state = close_stage(now)
    while isinstance(state, Open):
        now = state
        for member, request in state.requests.items():
            if state.stage == "share" or member != 5:
                now = receive(now, member, a.ask(member, request))
        state = close_stage(now)
    assert isinstance(state, Summed | Aborted)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({(2, 5)}, {2, 5}),
        ({(2, 5), (2, 6)}, {2}),
        ({(2, 5), (3, 5)}, {5}),
        ({(2, 5), (2, 6), (3, 5)}, {2, 5}),
        (set(), set()),
    ],
)
def test_whoever_is_in_more_misfits_is_named(pairs: set[tuple[ParticipantId, int]], named: set[int]) -> None:
    assert _blamed(pairs).keys() == named
