"""A coordinator that gives devices different work, to read one device's input from the sum.

Pasquini, Francati and Ateniese 2022, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency", in
its easiest form: everybody but the victim is asked for a learning rate of zero. Before the work was in the signed terms
the sum was the victim's delta, in one round, without a colluder; every field below gave something away. Real devices
and the real secure sum; the coordinator owns its signing key and every message.
"""

from dataclasses import fields, replace

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, NodeId, ParticipantId
from fedpeft.round.messages import BlockPayload, Failure, FitRequest, Ready, WorkTerms
from fedpeft.round.transport import Stage
from fedpeft.round.work import state_digest, work_digest
from fedpeft.secagg.primitives import digest
from fedpeft.secagg.roster import pack_members
from fedpeft.secagg.transcript import NeighbourKeys, advert_digest, advert_tree, offer_context
from fedpeft.testing.different_work import Lie, lied_to
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, fit_request, toy_past, toy_task, toy_terms
from fedpeft.testing.trainers import LinearTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

DEVICES = 6
SPEC = toy_spec({"head": 6, "bitfit": 3})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(DEVICES))
VICTIM = NodeId(1000)
BLOCKS = frozenset({"head", "bitfit"})


def linear_fleet() -> ToyFleet:
    return enrol({f"d{i}": LinearTrainer(f"d{i}", SPEC, BLOCKS) for i in range(DEVICES)})


def in_work(**changes: object) -> Lie:
    def lie(request: FitRequest) -> FitRequest:
        return replace(request, work=encode(replace(decode(request.work, WorkTerms), **changes)))  # type: ignore[arg-type]

    return lie


FASTER = PLAN.model_copy(update={"train": PLAN.train.model_copy(update={"local_steps": 1})}).to_json()
NOUGHT = tuple(BlockPayload(block_id=block_id, values=bytes(4 * STATE[block_id].size)) for block_id in STATE)
LIES: dict[str, Lie] = {
    "learning_rate_factor": in_work(learning_rate_factor=0.0),
    "learning_rate_scale": in_work(learning_rate_scale=2.0),
    "eval_examples": in_work(eval_examples=1),
    "first_step": in_work(first_step=9),
    "train": in_work(train=False),
    "blocks": in_work(blocks=()),
    "plan": in_work(plan=bytes(32)),
    "state": in_work(state=bytes(32)),
    "controls": in_work(controls=bytes(32)),
    "learning": lambda request: replace(request, learning=FASTER),
    "carried state": lambda request: replace(request, payloads=NOUGHT),
    "carried controls": lambda request: replace(request, controls=NOUGHT[1:2]),
}


def test_an_honest_round_is_summed() -> None:
    outcome = lied_to(linear_fleet(), PLAN, STATE, lambda request: request, victim=VICTIM)
    assert isinstance(outcome.result, secagg.Summed)
    assert len(outcome.result.survivors) == DEVICES


def test_every_field_of_the_work_has_its_attack() -> None:
    assert {field.name for field in fields(WorkTerms)} <= set(LIES)


@pytest.mark.parametrize("field", LIES)
def test_devices_with_different_work_have_no_sum(field: str) -> None:
    outcome = lied_to(linear_fleet(), PLAN, STATE, LIES[field], victim=VICTIM)
    assert isinstance(outcome.result, secagg.Aborted), "a sum of different work was opened"
    assert {name for name, account in outcome.traffic.items() if account.ready} == {"d0"}


def fitted(fleet: ToyFleet, node: NodeId, request: FitRequest) -> Ready | Failure:
    reply = decode(fleet.devices[node].handle(Stage.FIT, encode(request)), (Ready, Failure))
    assert isinstance(reply, Ready | Failure)
    return reply


@pytest.mark.parametrize("relabelled", [False, True])
def test_different_work_gives_no_common_sum_even_if_each_device_has_it_signed(relabelled: bool) -> None:
    """The state is bound, not foretold: a late joiner takes the one that is signed for it. But the signed terms are
    hashed into every key and advert, so the victim finds nobody whose advert is of its own round."""
    fleet = linear_fleet()
    other = STATE.replace({BlockId("head"): np.zeros(6, np.float32)})
    pasts = [toy_past(PLAN, STATE, rounds=1, left=state_digest(state.digests)) for state in (STATE, other)]
    true, false = (
        fit_request(fleet, PLAN, state, task=toy_task(PLAN, round_id=2, past=past))
        for state, past in zip((STATE, other), pasts, strict=True)
    )
    adverts = []
    for node in fleet.names:
        reply = fitted(fleet, node, true if node == VICTIM else false)
        assert isinstance(reply, Ready), "both states are signed"
        adverts.append(decode(reply.advertise, secagg.Advertise))
    context = offer_context(decode(true.offer, secagg.RoundOffer))
    assert [advert.context == context for advert in adverts] == [True] + [False] * (DEVICES - 1)
    if relabelled:
        adverts = [replace(advert, context=context) for advert in adverts]
    members = tuple(ParticipantId(place) for place in range(1, DEVICES + 1))
    roster = secagg.ShareRequest(
        context=context,
        members=pack_members(set(members), members),
        root=advert_tree(list(map(advert_digest, adverts)))[-1][0],
        classes=bytes(len(members)),
        owners=tuple(pack_members(set(members), members) for _ in toy_terms(fleet.members(), PLAN, STATE).blocks),
        neighbours=b"".join(NeighbourKeys.of(advert).pack() for advert in adverts[1:]),
        path=b"",
    )
    refusal = decode(fleet.devices[VICTIM].handle(Stage.SHARE, encode(roster)), (*secagg.REPLIES, Failure))
    assert isinstance(refusal, secagg.Refusal)
    assert refusal.reason is secagg.Reason.BAD_ROSTER


def test_a_signed_lie_about_what_the_plan_says_is_refused_by_who_hears_it() -> None:
    fleet = linear_fleet()
    work = encode(replace(toy_task(PLAN).work(STATE), learning_rate_factor=0.0))
    terms = toy_terms(fleet.members(), PLAN, STATE, work=work_digest(work))
    request = fit_request(fleet, PLAN, STATE, terms=terms, work=work)
    for node in fleet.names:
        assert isinstance(fitted(fleet, node, request), Failure)


def test_privacy_cannot_be_switched_off_for_one_device() -> None:
    """A run that is private by examples for all but one: that one would add its delta without noise."""
    from fedpeft.round.plan import ExampleTerms

    promised = ExampleTerms(epsilon=8.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=12)
    private = PLAN.model_copy(update={"privacy": promised})
    fleet = linear_fleet()
    honest = fit_request(fleet, private, STATE)
    assert isinstance(fitted(fleet, VICTIM, replace(honest, learning=PLAN.to_json())), Failure)
    # A plan of its own, signed: another round of another work, in which it is alone.
    alone = fit_request(fleet, PLAN, STATE)
    assert decode(alone.offer, secagg.RoundOffer).spec != decode(honest.offer, secagg.RoundOffer).spec
    assert isinstance(fitted(fleet, VICTIM, alone), Ready)
    later = fit_request(fleet, private, STATE, task=toy_task(private, round_id=2))
    assert isinstance(fitted(fleet, VICTIM, later), Failure), "what the run is was settled in its first round"


def test_digests_of_work_are_of_the_work_alone() -> None:
    """Another label or framing would give another digest: a value of one kind never stands for another."""
    assert work_digest(b"x") == digest("work", b"x") != digest("state", b"x")
    assert work_digest(os_entropy(8)) != work_digest(os_entropy(8))
