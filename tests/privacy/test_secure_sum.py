"""Noise through the real secure sum: every message encoded, devices dropping out, terms refused, crashes.

Keys come from seeded entropy, noise from the operating system: bounds are wide enough for 1 in 10^8 runs to fail.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import ConfigInvalid
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.privacy import NoiseTerms, clip, l2_norm, size_mechanism
from fedpeft.ring import SumRange
from fedpeft.secagg import DeviceSession, Participant, Reason, Refusal, RoundSpec, Summed, SummedBlock, check_spec
from fedpeft.secagg.messages import MaskedInput, MaskRequest
from fedpeft.secagg.spec import mechanism
from fedpeft.testing.secagg import Op, Round
from fedpeft.testing.secagg_fleet import Fleet, make_fleet, make_spec

A, B = BlockId("a"), BlockId("b")
LENGTH = 600
BLOCKS = tuple(SummedBlock(block_id=block, ranges=(SumRange(length=LENGTH, max_abs=1.0),)) for block in (A, B))


def noisy_spec(fleet: Fleet, *, min_cohort: int = 5, z: float = 1.0, colluders: int = 1, bits: int = 32) -> RoundSpec:
    blocks = tuple(replace(block, bits=bits) for block in BLOCKS)
    spec = make_spec(fleet, blocks, min_cohort=min_cohort)
    made = size_mechanism(
        l2_clip_norm=1.0,
        noise_multiplier=z,
        colluders=colluders,
        devices=len(fleet.identities),
        threshold=min_cohort,
        bits=bits,
        parameters=2 * LENGTH,
    )
    return replace(spec, noise=made.terms)


def vectors_of(spec: RoundSpec, seed: int) -> dict[ParticipantId, dict[BlockId, np.ndarray]]:
    generator = np.random.default_rng(seed)
    made = mechanism(spec)
    assert made is not None
    inputs = {}
    for peer in spec.participants:
        raw = {block: generator.normal(size=LENGTH).astype(np.float32) for block in (A, B)}
        inputs[peer.participant_id] = dict(clip(raw, l2_clip_norm=1.0, allowance=made.allowance).vectors)
    return inputs


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_the_coordinator_gets_the_sum_with_at_least_the_promised_noise(bits: int, gone: int) -> None:
    fleet = make_fleet(8)
    spec = noisy_spec(fleet, bits=bits, z=0.5)
    inputs = vectors_of(spec, seed=1)
    ops = [Op(kind="drop", stage="mask", member=ParticipantId(member)) for member in range(1, gone + 1)]
    end = Round(fleet=fleet, spec=spec, inputs=inputs, ops=ops).run()
    assert isinstance(end, Summed)
    assert len(end.survivors) == 8 - gone
    noise = np.concatenate(
        [end.sums[block].values - sum(inputs[m][block].astype(float) for m in end.survivors) for block in (A, B)]
    )
    made = mechanism(spec)
    assert made is not None
    expected = 0.5 * math.sqrt(len(end.survivors) / made.shares)
    assert noise.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * len(noise)))
    assert noise.std() > 0.5
    chi = float(np.sum((noise / expected) ** 2))
    assert abs(chi - len(noise)) < 6 * math.sqrt(2 * len(noise))


def test_a_block_with_few_owners_has_the_promised_noise_or_stays_masked() -> None:
    fleet = make_fleet(8)
    spec = noisy_spec(fleet, min_cohort=5)
    owns = {ParticipantId(m): frozenset({A, B} if m <= 4 else {A}) for m in range(1, 9)}
    inputs = vectors_of(spec, seed=2)
    end = Round(fleet=fleet, spec=spec, inputs=inputs, owns=owns).run()
    assert isinstance(end, Summed)
    assert set(end.sums) == {A}
    assert "expected 5 organisations" in end.skipped[B]


def test_a_device_refuses_to_encode_what_was_not_clipped() -> None:
    fleet = make_fleet(5)
    spec = noisy_spec(fleet)
    inputs = vectors_of(spec, seed=3)
    each = {block: vector / np.float32(l2_norm({block: vector})) for block, vector in inputs[ParticipantId(1)].items()}
    end = Round(fleet=fleet, spec=spec, inputs={**inputs, ParticipantId(1): each}).run()
    rejected = end.rejected[ParticipantId(1)]
    assert rejected.reason is Reason.BAD_INPUT
    assert "clip it" in rejected.detail


def masked(fleet: Fleet, spec: RoundSpec, inputs: dict[ParticipantId, dict[BlockId, np.ndarray]]) -> dict[int, bytes]:
    """What each device uploads."""
    this = Round(fleet=fleet, spec=spec, inputs=inputs)
    state = this.reach("mask")
    replies = {member: this.ask(member, request) for member, request in state.requests.items()}
    assert all(isinstance(reply, MaskedInput) for reply in replies.values())
    return {member: reply.vectors[0] for member, reply in replies.items() if isinstance(reply, MaskedInput)}


def test_noise_differs_between_runs_of_the_same_seeds() -> None:
    """Same keys, same masks, same inputs: what differs is the noise alone, and it is of the operating system."""
    uploads = []
    for _ in range(2):
        fleet = make_fleet(5, seed=7)
        spec = noisy_spec(fleet)
        uploads.append(masked(fleet, spec, vectors_of(spec, seed=4)))
    made = mechanism(spec)
    assert made is not None
    for member in uploads[0]:
        one, other = (np.frombuffer(upload[member], "<u4") for upload in uploads)
        noise = (one - other).view("<i4").astype(float)
        assert (noise == 0).mean() < 0.01
        assert noise.std() == pytest.approx(made.share_sigma * math.sqrt(2), rel=0.2)


def test_noise_differs_between_devices() -> None:
    """Zero inputs: the sum of equal shares would be n shares, not sqrt(n)."""
    fleet = make_fleet(8)
    spec = noisy_spec(fleet, min_cohort=8, colluders=0)
    zeros = {
        peer.participant_id: {block: np.zeros(LENGTH, np.float32) for block in (A, B)} for peer in spec.participants
    }
    end = Round(fleet=fleet, spec=spec, inputs=zeros).run()
    assert isinstance(end, Summed)
    assert end.sums[A].values.std() == pytest.approx(1.0, rel=0.2)
    assert abs(np.corrcoef(end.sums[A].values, end.sums[B].values)[0, 1]) < 0.25


def test_a_device_that_restarts_answers_with_the_noise_it_had() -> None:
    """The reply is durable before it leaves: two uploads with different noise would average it away."""
    fleet = make_fleet(5)
    spec = noisy_spec(fleet)
    ops = [
        Op(kind="restart", stage="mask", member=ParticipantId(2)),
        Op(kind="duplicate", stage="mask", member=ParticipantId(3)),
    ]
    end = Round(fleet=fleet, spec=spec, inputs=vectors_of(spec, seed=5), ops=ops).run()
    assert isinstance(end, Summed)
    assert len(end.survivors) == 5


def test_a_second_mask_request_gets_no_second_noise() -> None:
    fleet = make_fleet(5)
    spec = noisy_spec(fleet)
    this = Round(fleet=fleet, spec=spec, inputs=vectors_of(spec, seed=6))
    state = this.reach("mask")
    request = state.requests[ParticipantId(1)]
    assert isinstance(request, MaskRequest)
    first = this.ask(ParticipantId(1), request)
    assert this.ask(ParticipantId(1), request) == first
    assert isinstance(this.ask(ParticipantId(1), replace(request, ciphertexts=request.ciphertexts[::-1])), Refusal)


@pytest.mark.parametrize(
    ("policy", "words"),
    [({"min_noise_multiplier": 1.5}, "noise multiplier >= 1.5"), ({"min_colluders": 2}, "against 2 colluders")],
)
def test_a_site_refuses_weaker_noise_than_it_demands(policy: dict[str, float], words: str) -> None:
    fleet = make_fleet(5, **policy)
    this = Round(fleet=fleet, spec=noisy_spec(fleet))
    reply = this.ask(ParticipantId(1), this.open().requests[ParticipantId(1)])
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.POLICY
    assert words in reply.detail


@pytest.mark.parametrize(("colluders", "taken"), [(1, False), (2, True)])
def test_devices_that_a_site_has_not_confirmed_count_against_the_noise_too(colluders: int, taken: bool) -> None:
    """The thresholds hold against two of seven; the noise must as well."""

    class TwoStrangers:
        def admit(self, roster: Sequence[Participant]) -> int | str:
            return 2

    fleet, one = make_fleet(7), ParticipantId(1)
    fleet.sessions[one] = DeviceSession(
        ledger=fleet.ledgers[one],
        identity=fleet.identities[0],
        enrolled=fleet.enrolled(one),
        policy=fleet.policy,
        directory=TwoStrangers(),
    )
    this = Round(fleet=fleet, spec=replace(noisy_spec(fleet, colluders=colluders), corrupt_fraction=0.28))
    reply = this.ask(one, this.open().requests[one])
    assert isinstance(reply, Refusal) is not taken, reply


def test_a_site_that_demands_noise_refuses_terms_without() -> None:
    fleet = make_fleet(5, min_noise_multiplier=0.1)
    this = Round(fleet=fleet, spec=make_spec(fleet, BLOCKS))
    reply = this.ask(ParticipantId(1), this.open().requests[ParticipantId(1)])
    assert isinstance(reply, Refusal)
    assert "no noise" in reply.detail


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (NoiseTerms(l2_clip_norm=1.0, noise_multiplier=1.0, colluders=5, step=2.0**-20), "fewer than the 5"),
        (NoiseTerms(l2_clip_norm=1.0, noise_multiplier=1.0, colluders=1, step=2.0**-40), "below 2"),
        (NoiseTerms(l2_clip_norm=1.0, noise_multiplier=0.0, colluders=1, step=2.0**-20), "noise multiplier"),
    ],
)
def test_terms_that_cannot_keep_their_promise_are_refused_on_both_sides(terms: NoiseTerms, words: str) -> None:
    fleet = make_fleet(8)
    with pytest.raises(ConfigInvalid, match=words):
        check_spec(replace(noisy_spec(fleet), noise=terms))


def test_exact_counts_beside_noise_are_refused() -> None:
    fleet = make_fleet(8)
    spec = noisy_spec(fleet)
    counts = SummedBlock(block_id=BlockId("c"), ranges=(SumRange(length=1, max_abs=5.0, exact=True),))
    with pytest.raises(ConfigInvalid, match="no exact counts"):
        check_spec(replace(spec, blocks=(*spec.blocks, counts)))
