"""A device that cheats: it is put out with the reason, the round goes on, and nothing of it stays in the sum."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    Aborted,
    Advertise,
    Agreement,
    CoordinatorState,
    EncryptedShares,
    MaskedInput,
    Open,
    Reason,
    Refusal,
    Reply,
    RevealedShares,
    Summed,
    SummedBlock,
    close_stage,
    load_state,
    receive,
    reject,
)
from fedpeft.secagg.device_state import Advertised, Agreed, Shared
from fedpeft.secagg.primitives import AgreementKey, IdentityKey, authenticate, hkdf, seal
from fedpeft.secagg.roster import read_roster
from fedpeft.secagg.shamir import PRIME, SHARE_SIZE
from fedpeft.secagg.transcript import (
    STAGE_CONSIST,
    STAGE_MASK,
    STAGE_REVEAL,
    STAGE_SHARE,
    advert_digest,
    associated_data,
    encryption_key,
    encryption_nonce,
)
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

BAD = ParticipantId(2)
B = BlockId("b")


def a_round(devices: int = 9, **changes: object) -> Round:
    fleet = make_fleet(devices)
    return Round(fleet=fleet, spec=make_spec(fleet, **changes))


def play(a: Round, stage: str, cheat, before: bool = True) -> CoordinatorState:
    """A round in which the bad device's reply of one stage goes through ``cheat``."""
    state: CoordinatorState = a.open()
    while isinstance(state, Open):
        now: CoordinatorState = state
        for member, request in state.requests.items():
            reply = a.ask(member, request)
            if state.stage == stage and member == BAD:
                reply = cheat(a, reply)
            now = receive(now, member, reply)
        state = close_stage(now)
    return state


def keys_of(a: Round) -> bytes:
    """The bad device's own reply key, which a cheat of course has."""
    state = a.fleet.ledgers[BAD].load("run")
    assert isinstance(state, Advertised | Shared)
    channel = AgreementKey(hkdf(state.root.value, state.participation.context, "channel-key"))
    return hkdf(channel.agree(state.participation.offer.coordinator_channel), state.participation.context, "reply")


def without_the_bad_one(outcome: CoordinatorState, reason: Reason, devices: int = 9) -> None:
    assert isinstance(outcome, Summed), outcome
    expected = np.ones(devices)
    expected[BAD - 1] = 0
    assert np.array_equal(outcome.sums[B].values, expected)
    assert outcome.rejected[BAD].reason is reason
    assert outcome.rejected[BAD].detail


# FIT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"signature": bytes(64)}, Reason.BAD_SIGNATURE),
        ({"mask_key": b"short"}, Reason.BAD_SIGNATURE),
        ({"commitments": ()}, Reason.BAD_SIGNATURE),
        ({"participant_id": ParticipantId(3)}, Reason.BAD_SIGNATURE),
        ({"blocks": (BlockId("undeclared"),)}, Reason.BLOCK_NOT_DECLARED),
        ({"blocks": ()}, Reason.BLOCK_NOT_DECLARED),
        ({"context": bytes(32)}, Reason.WRONG_ROUND),
        ({"weight_class": 64}, Reason.MALFORMED),
        ({"weight_class": 2**32 - 1}, Reason.MALFORMED),
    ],
    ids=[
        "signature",
        "short-key",
        "no-commitment",
        "another's-id",
        "undeclared-block",
        "no-block",
        "replayed",
        "class-64",
        "largest-class",
    ],
)
def test_a_bad_advert_puts_its_sender_out(change: dict, reason: Reason) -> None:
    def cheat(a: Round, reply: Reply) -> Reply:
        forged = replace(reply, **change)
        if "signature" in change:
            return forged
        identity: IdentityKey = a.fleet.identities[BAD - 1]
        return replace(forged, signature=identity.sign(advert_digest(forged)))

    without_the_bad_one(play(a_round(), "fit", cheat), reason)


def test_a_low_order_channel_key_puts_its_sender_out() -> None:
    def cheat(a: Round, reply: Advertise) -> Reply:
        forged = replace(reply, channel_key=bytes(32))
        return replace(forged, signature=a.fleet.identities[BAD - 1].sign(advert_digest(forged)))

    without_the_bad_one(play(a_round(), "fit", cheat), Reason.BAD_ROSTER)


# SHARE


def test_ciphertexts_of_another_length_put_their_sender_out() -> None:
    def cheat(a: Round, reply: EncryptedShares) -> Reply:
        return replace(reply, ciphertexts=reply.ciphertexts[:-1])

    without_the_bad_one(play(a_round(), "share", cheat), Reason.BAD_LENGTH)


def ciphertexts_with(a: Round, reply: EncryptedShares, holders: range, plaintext: bytes | None) -> EncryptedShares:
    """The bad device's ciphertexts with some replaced: garbage, or sealed properly around another plaintext."""
    state = a.fleet.ledgers[BAD].load("run")
    assert isinstance(state, Shared)
    roster = read_roster(state.participation.offer, state.roster)
    peers, size, ciphertexts = roster.sharing_neighbours(BAD), roster.ciphertext_size(BAD), bytearray(reply.ciphertexts)
    for index in holders:
        ciphertext = bytes(size)
        if plaintext is not None:
            key = encryption_key(state.channels.value[32 * index : 32 * index + 32])
            ciphertext = seal(key, encryption_nonce(BAD), plaintext, associated_data(roster.context, BAD, peers[index]))
        ciphertexts[size * index : size * (index + 1)] = ciphertext
    parts = [reply.context, bytes(ciphertexts)]
    return replace(reply, ciphertexts=bytes(ciphertexts), tag=authenticate(keys_of(a), STAGE_SHARE, parts))


@pytest.mark.parametrize(
    "plaintext",
    [None, PRIME.to_bytes(SHARE_SIZE, "big") * 2, (5).to_bytes(SHARE_SIZE, "big") * 2],
    ids=["garbage", "out-of-field", "off-the-polynomial"],
)
def test_a_few_bad_shares_change_nothing(plaintext: bytes | None) -> None:
    """Nine devices, eight holders, six needed: one holder gets a bad ciphertext; the sum is exact, everybody in it."""
    outcome = play(a_round(), "share", lambda a, reply: ciphertexts_with(a, reply, range(1), plaintext))
    assert isinstance(outcome, Summed), outcome
    assert np.array_equal(outcome.sums[B].values, np.ones(9))


@pytest.mark.parametrize("plaintext", [None, PRIME.to_bytes(SHARE_SIZE, "big") * 2], ids=["garbage", "out-of-field"])
def test_too_many_unreadable_ciphertexts_abort_before_anything_is_agreed_and_name_the_dealer(
    plaintext: bytes | None,
) -> None:
    outcome = play(a_round(), "share", lambda a, reply: ciphertexts_with(a, reply, range(4), plaintext))
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.SECRET_LOST
    assert outcome.blamed == {BAD}
    assert outcome.restartable


def test_many_wrong_shares_make_the_round_fail_and_name_the_dealer() -> None:
    wrong = (5).to_bytes(SHARE_SIZE, "big") * 2
    outcome = play(a_round(), "share", lambda a, reply: ciphertexts_with(a, reply, range(8), wrong))
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.SECRET_LOST
    assert outcome.blamed == {BAD}


def test_a_commitment_to_another_seed_is_found_out_and_named() -> None:
    def cheat(a: Round, reply: Advertise) -> Reply:
        forged = replace(reply, commitments=(bytes(32),))
        state = a.fleet.ledgers[BAD].load("run")
        signed = replace(forged, signature=a.fleet.identities[BAD - 1].sign(advert_digest(forged)))
        a.fleet.ledgers[BAD].save("run", replace(state, reply=signed))
        return signed

    outcome = play(a_round(), "fit", cheat)
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.SECRET_LOST
    assert outcome.blamed == {BAD}


# MASK


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ((bytes(35),), Reason.BAD_LENGTH),
        ((bytes(37),), Reason.BAD_LENGTH),
        ((bytes(18),), Reason.BAD_LENGTH),
        ((bytes(72),), Reason.BAD_LENGTH),
        ((b"",), Reason.BAD_LENGTH),
        ((), Reason.BAD_LENGTH),
        ((bytes(36), bytes(36)), Reason.BAD_LENGTH),
        ((bytes(36_000_000),), Reason.BAD_LENGTH),
    ],
    ids=["short", "long", "16-bit-ring", "64-bit-ring", "empty", "none", "undeclared-block", "oversized"],
)
def test_a_vector_of_another_length_ring_or_block_puts_its_sender_out(vectors: tuple, reason: Reason) -> None:
    def cheat(a: Round, reply: MaskedInput) -> Reply:
        tag = authenticate(_reply_key(a), STAGE_MASK, [reply.context, b"", *vectors])
        return replace(reply, vectors=vectors, tag=tag)

    without_the_bad_one(play(a_round(), "mask", cheat), reason)


def _reply_key(a: Round) -> bytes:
    return a.fleet.ledgers[BAD].load("run").reply_key.value


def test_words_that_no_input_encodes_to_abort_the_round_with_the_suspicion() -> None:
    """Counts have room above honest sums; nobody can say whose words they were, and nothing is used."""

    def cheat(a: Round, reply: MaskedInput) -> Reply:
        words = np.frombuffer(reply.vectors[0], "<u4").copy()
        words[3] += 1000
        vectors = (words.tobytes(),)
        tag = authenticate(_reply_key(a), STAGE_MASK, [reply.context, b"", *vectors])
        return replace(reply, vectors=vectors, tag=tag)

    outcome = play(a_round(), "mask", cheat)
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.OUT_OF_RANGE
    assert "no input encodes to" in outcome.detail
    assert not outcome.restartable


def test_a_forged_masked_input_never_reaches_the_sum() -> None:
    def cheat(a: Round, reply: MaskedInput) -> Reply:
        return replace(reply, vectors=(bytes(36),))

    without_the_bad_one(play(a_round(), "mask", cheat), Reason.BAD_SIGNATURE)


def test_a_masked_input_of_another_round_never_reaches_the_sum() -> None:
    other = a_round(round_id=7)
    state = other.reach("mask")
    stale = other.ask(BAD, state.requests[BAD])
    without_the_bad_one(play(a_round(), "mask", lambda a, reply: stale), Reason.WRONG_ROUND)


@pytest.mark.parametrize("unopened", [(ParticipantId(2),), (ParticipantId(77),), (ParticipantId(3), ParticipantId(3))])
def test_complaints_about_others_than_neighbours_put_their_sender_out(unopened: tuple) -> None:
    def cheat(a: Round, reply: MaskedInput) -> Reply:
        return replace(reply, unopened=unopened)

    without_the_bad_one(play(a_round(), "mask", cheat), Reason.BAD_ROSTER)


def test_a_second_masked_input_is_ignored() -> None:
    a = a_round()
    state = a.reach("mask")
    now: CoordinatorState = state
    for member, request in state.requests.items():
        reply = a.ask(member, request)
        now = receive(receive(receive(now, member, reply), member, reply), member, replace(reply, tag=bytes(16)))
    state = close_stage(now)
    while isinstance(state, Open):
        state = a.finish_stage(state)
    assert isinstance(state, Summed)
    assert np.array_equal(state.sums[B].values, np.ones(9))
    assert BAD not in state.rejected


# CONSIST and REVEAL


def with_tag(a: Round, reply: Agreement) -> Agreement:
    """The reply, authenticated anew to the coordinator: what a colluding device sends."""
    key = load_state(a.fleet.ledgers[BAD].dumped["run"]).reply_key.value
    return replace(reply, tag=authenticate(key, STAGE_CONSIST, [reply.context, reply.signature]))


@pytest.mark.parametrize("authenticated", [False, True])
def test_an_agreement_that_its_identity_did_not_sign_puts_its_sender_out(authenticated: bool) -> None:
    def cheat(a: Round, reply: Agreement) -> Reply:
        forged = replace(reply, signature=bytes(64))
        return with_tag(a, forged) if authenticated else forged

    outcome = play(a_round(), "consist", cheat)
    assert isinstance(outcome, Summed)
    assert outcome.rejected[BAD].reason is Reason.BAD_SIGNATURE
    assert np.array_equal(outcome.sums[B].values, np.ones(9)), "its input was in before it cheated"


def test_an_agreement_about_another_set_of_survivors_puts_its_sender_out() -> None:
    """Though what it signs and authenticates is the right one."""
    outcome = play(a_round(), "consist", lambda a, reply: replace(reply, context=bytes(32)))
    assert isinstance(outcome, Summed)
    assert outcome.rejected[BAD].reason is Reason.WRONG_ROUND


def test_wrong_revealed_shares_are_repaired_around_and_their_holder_is_named() -> None:
    def cheat(a: Round, reply: RevealedShares) -> Reply:
        shares = b"".join((7).to_bytes(SHARE_SIZE, "big") for _ in range(0, len(reply.shares), SHARE_SIZE))
        return replace(
            reply, shares=shares, tag=authenticate(cheat.key, STAGE_REVEAL, [reply.context, reply.opened, shares])
        )

    a = a_round()
    state = a.reach("reveal")
    agreed = a.fleet.ledgers[BAD].load("run")
    assert isinstance(agreed, Agreed)
    cheat.key = agreed.reply_key.value
    now: CoordinatorState = state
    for member, request in state.requests.items():
        reply = a.ask(member, request)
        now = receive(now, member, cheat(a, reply) if member == BAD else reply)
    outcome = close_stage(now)
    assert isinstance(outcome, Summed)
    assert np.array_equal(outcome.sums[B].values, np.ones(9))
    assert outcome.rejected[BAD].reason is Reason.BAD_SHARE
    assert set(outcome.rejected) == {BAD}


@pytest.mark.parametrize("change", ["short", "more-blocks", "padding"])
def test_another_number_of_shares_puts_their_sender_out(change: str) -> None:
    a = a_round()
    state = a.reach("reveal")
    key = a.fleet.ledgers[BAD].load("run").reply_key.value
    now: CoordinatorState = state
    for member, request in state.requests.items():
        reply = a.ask(member, request)
        if member == BAD:
            shares = reply.shares[:-1] if change == "short" else reply.shares
            opened = {"short": reply.opened, "more-blocks": b"\x00", "padding": b"\xc0"}[change]
            tag = authenticate(key, STAGE_REVEAL, [reply.context, opened, shares])
            reply = replace(reply, shares=shares, opened=opened, tag=tag)
        now = receive(now, member, reply)
    outcome = close_stage(now)
    assert isinstance(outcome, Summed)
    assert outcome.rejected[BAD].reason is Reason.BAD_LENGTH
    assert np.array_equal(outcome.sums[B].values, np.ones(9))


# Any stage


@pytest.mark.parametrize("stage", ["share", "mask", "consist", "reveal"])
def test_a_reply_that_is_not_authenticated_with_its_senders_key_puts_its_sender_out(stage: str) -> None:
    """However right the rest of it is, its signatures too."""
    outcome = play(a_round(), stage, lambda a, reply: replace(reply, tag=bytes(len(reply.tag))))
    assert isinstance(outcome, Summed), outcome
    assert outcome.rejected[BAD].reason is Reason.BAD_SIGNATURE
    assert "authenticated" in outcome.rejected[BAD].detail


def test_a_reply_of_a_later_stage_puts_its_sender_out_and_one_of_an_earlier_is_ignored() -> None:
    a = a_round()
    state = a.open()
    ahead = a_round()
    later = ahead.ask(BAD, ahead.reach("mask").requests[BAD])
    now = receive(state, BAD, later)
    assert isinstance(now, Open)
    assert now.rejected[BAD].reason is Reason.OUT_OF_ORDER
    sharing = a.reach("share")
    advert = sharing.progress.members.adverts[BAD]
    assert receive(sharing, BAD, advert) is sharing


def test_strangers_the_rejected_and_the_late_change_nothing() -> None:
    a = a_round()
    state = a.reach("mask")
    reply = a.ask(BAD, state.requests[BAD])
    assert receive(state, ParticipantId(77), reply) is state
    out = reject(state, BAD, Reason.MALFORMED, "bytes")
    assert receive(out, BAD, reply) is out
    assert reject(out, BAD, Reason.LATE, "again") is out
    ended = a_round().run()
    assert receive(ended, BAD, reply) is ended
    assert close_stage(ended) is ended


def test_an_agreement_that_is_said_again_while_shares_are_asked_for_changes_nothing() -> None:
    a = a_round()
    consist = a.reach("consist")
    agreement = a.ask(BAD, consist.requests[BAD])
    state = a.finish_stage(consist)
    assert isinstance(state, Open)
    assert state.stage == "reveal"
    assert receive(state, BAD, agreement) is state


def test_a_refusal_is_an_outcome_with_its_reason() -> None:
    outcome = play(a_round(), "fit", lambda a, reply: Refusal(reason=Reason.POLICY, detail="not today"))
    without_the_bad_one(outcome, Reason.POLICY)
    assert "not today" in outcome.rejected[BAD].detail


def test_a_bad_upload_of_one_block_leaves_no_trace_in_another() -> None:
    """Both vectors are checked before either is added."""
    blocks = [SummedBlock(block_id=BlockId(n), ranges=(SumRange(length=9, max_abs=1.0, exact=True),)) for n in "bc"]
    fleet = make_fleet(9)
    a = Round(fleet=fleet, spec=make_spec(fleet, blocks))

    def cheat(a: Round, reply: MaskedInput) -> Reply:
        vectors = (reply.vectors[0], reply.vectors[1][:-1])
        return replace(
            reply, vectors=vectors, tag=authenticate(_reply_key(a), STAGE_MASK, [reply.context, b"", *vectors])
        )

    without_the_bad_one(play(a, "mask", cheat), Reason.BAD_LENGTH)
