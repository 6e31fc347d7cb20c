"""The device alone: every stage, every reason to stop, and what a hostile or forgetful coordinator may try."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.errors import ConfigInvalid, DataInvalid, PolicyRefused, ResourceMissing
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.device.pins import pinned
from fedpeft.round.device.records import HeldBlocks, KeptResult, OpenRound
from fedpeft.round.local import LocalResult
from fedpeft.round.messages import (
    BlockPayload,
    Failure,
    FailureReason,
    FitRequest,
    Profile,
    ProfileRequest,
    Ready,
)
from fedpeft.round.plan import MAX_STATE
from fedpeft.round.size_class import size_class
from fedpeft.round.transport import Stage
from fedpeft.round.work import plan_digest, state_digest, work_digest
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, fit_request, toy_past, toy_task, toy_terms
from fedpeft.testing.trainers import FROZEN, GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import WireError, decode, encode

SPEC = toy_spec({"head": 4, "bitfit": 5})
STATE = toy_state(SPEC)
TERMS = exact_terms(4)
PLAN = toy_plan(SPEC, secagg=TERMS)
NODE = NodeId(1000)


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})


def given(fleet: ToyFleet, name: str = "d0") -> GivenTrainer:
    trainer = fleet.trainers[name]
    assert isinstance(trainer, GivenTrainer)
    return trainer


def fit(fleet: ToyFleet, request: FitRequest) -> Ready | Failure:
    reply = decode(fleet.devices[NODE].handle(Stage.FIT, encode(request)), (Ready, Failure))
    assert isinstance(reply, Ready | Failure)
    return reply


@dataclass(frozen=True)
class Refusal:
    """What left a device that failed, and what is in its own log."""

    reason: FailureReason
    detail: str


def failed(fleet: ToyFleet, request: FitRequest) -> Refusal:
    told: list[str] = []
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    reply = fit(fleet, request)
    assert isinstance(reply, Failure), "the device took part"
    return Refusal(reason=reply.reason, detail=" ".join(told))


def opened(fleet: ToyFleet) -> OpenRound:
    return decode(fleet.stores["d0"].values["open-round"], OpenRound)


def test_a_profile_names_the_device_its_key_and_what_it_holds(fleet: ToyFleet) -> None:
    asked = encode(ProfileRequest(run_id="toy-run"))
    fresh = decode(fleet.devices[NODE].handle(Stage.PROFILE, asked), Profile)
    assert (fresh.device, fresh.organisation, fresh.methods) == ("d0", "d0", "head")
    assert fresh.identity == fleet.keys["d0"].public
    assert fresh.held == ()
    fit(fleet, fit_request(fleet, PLAN, STATE))
    holding = decode(fleet.devices[NODE].handle(Stage.PROFILE, asked), Profile)
    assert {entry.block_id: entry.sha256 for entry in holding.held} == STATE.digests


def test_a_device_trains_from_exactly_the_state_it_was_sent(fleet: ToyFleet) -> None:
    assert isinstance(fit(fleet, fit_request(fleet, PLAN, STATE)), Ready)
    (received,) = given(fleet).received
    assert received.digests == STATE.digests
    (request,) = given(fleet).fitted
    assert (request.first_step, request.learning_rate_factor, request.train) == (0, 1.0, True)


def test_ready_says_which_blocks_and_nothing_about_the_examples(fleet: ToyFleet) -> None:
    few = fit(fleet, fit_request(fleet, PLAN, STATE))
    other = enrol(
        {f"d{i}": GivenTrainer(SPEC, {"head": 7 * one_hot(4, i)}, examples=9, measured=(0.0, 0, 7)) for i in range(4)}
    )
    many = fit(other, fit_request(other, PLAN, STATE))
    assert isinstance(few, Ready)
    assert few == many  # byte for byte: the same keys, and no trace of other deltas, counts or losses
    advert = decode(few.advertise, secagg.Advertise)
    assert advert.blocks == ("head", "metrics", "task-metrics", "train-loss")


def test_blocks_already_held_need_not_be_sent_again(fleet: ToyFleet) -> None:
    """Under a rule whose states travel; of the others devices make the state themselves."""
    plan = PLAN.model_copy(update={"aggregate": PLAN.aggregate.model_copy(update={"a_round_every": 2})})
    fit(fleet, fit_request(fleet, plan, STATE))
    later = STATE.replace({BlockId("head"): np.ones(4, np.float32)})
    past = toy_past(plan, STATE, rounds=1, left=state_digest(later.digests))
    request = fit_request(fleet, plan, later, task=toy_task(plan, round_id=2, past=past))
    only_head = tuple(part for part in request.payloads if part.block_id == "head")
    assert isinstance(fit(fleet, replace(request, payloads=only_head)), Ready)
    assert given(fleet).received[-1].digests == later.digests


@pytest.mark.parametrize(("scale", "taken"), [(2.0, True), (3.0, False), (0.0, False)])
def test_a_device_holds_a_run_to_the_learning_rate_that_it_measured(fleet: ToyFleet, scale: float, taken: bool) -> None:
    train = PLAN.train.model_copy(update={"learning_rate": "measured"})
    plan = PLAN.model_copy(update={"train": train})
    first = replace(toy_task(plan, round_id=3, state=STATE), scale=2.0)
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE, task=first)), Ready)
    request = fit_request(fleet, plan, STATE, task=replace(toy_task(plan, round_id=4, state=STATE), scale=scale))
    if taken:
        assert isinstance(fit(fleet, request), Ready)
    else:
        assert "2 times the table's" in failed(fleet, request).detail


def test_a_round_that_has_no_learning_rate_makes_no_device_forget_the_one_that_was_measured(fleet: ToyFleet) -> None:
    """An evaluation here; a round that measures the head anew as well, after which others train."""
    train = PLAN.train.model_copy(update={"learning_rate": "measured"})
    plan = PLAN.model_copy(update={"train": train})
    scaled = replace(toy_task(plan, round_id=3, state=STATE), scale=2.0)
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE, task=scaled)), Ready)
    resting = replace(toy_task(plan, train=False, state=STATE), scale=2.0)
    assert resting.work(STATE).learning_rate_scale == 0.0
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE, task=resting)), Ready)
    pin = pinned(fleet.stores["d0"], plan.run_id)
    assert pin is not None
    assert (pin.round_id, pin.scale) == (resting.round_id, 2.0)


def test_a_device_without_the_state_says_so_and_then_takes_all_of_it(fleet: ToyFleet) -> None:
    whole = fit_request(fleet, PLAN, STATE)
    reply = failed(fleet, replace(whole, payloads=()))
    assert reply.reason is FailureReason.MISSING_STATE
    assert given(fleet).fitted == []
    assert isinstance(fit(fleet, whole), Ready)


def test_a_block_that_is_not_what_its_digest_says_counts_as_missing(fleet: ToyFleet) -> None:
    request = fit_request(fleet, PLAN, STATE)
    changed = tuple(replace(part, values=b"\1" + part.values[1:]) for part in request.payloads)
    assert failed(fleet, replace(request, payloads=changed)).reason is FailureReason.MISSING_STATE


def test_a_restarted_device_still_holds_the_state(fleet: ToyFleet) -> None:
    fit(fleet, fit_request(fleet, PLAN, STATE))
    fleet.restart(NODE)
    request = fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, round_id=2))
    assert isinstance(fit(fleet, replace(request, payloads=())), Ready)
    fleet.restart(NODE, wiped=True)
    request = fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, round_id=3))
    assert failed(fleet, replace(request, payloads=())).reason is FailureReason.MISSING_STATE


def test_a_plan_that_builds_another_adapter_here_is_refused(fleet: ToyFleet) -> None:
    other = PLAN.model_copy(update={"adapter_spec": "0" * 64})
    reply = failed(fleet, fit_request(fleet, other, STATE))
    assert reply.reason is FailureReason.REFUSED
    assert SPEC.digest[:12] in reply.detail
    assert given(fleet).fitted == []


def test_a_plan_of_another_run_than_the_signed_terms_name_is_refused(fleet: ToyFleet) -> None:
    terms = toy_terms(fleet.members(), PLAN, STATE, run_id="another-run")
    reply = failed(fleet, fit_request(fleet, PLAN, STATE, terms=terms))
    assert reply.reason is FailureReason.REFUSED
    assert "another-run" in reply.detail
    assert given(fleet).fitted == []


def spelt(fleet: ToyFleet, learning: str) -> FitRequest:
    """A request whose signed work names exactly this text as the plan."""
    work = encode(replace(toy_task(PLAN).work(STATE), plan=plan_digest(learning)))
    terms = toy_terms(fleet.members(), PLAN, STATE, work=work_digest(work))
    return fit_request(fleet, PLAN, STATE, terms=terms, work=work, learning=learning)


def test_a_plan_of_another_version_is_refused(fleet: ToyFleet) -> None:
    reply = failed(fleet, spelt(fleet, PLAN.to_json()[:-1] + ',"run_this":"rm -rf"}'))
    assert reply.reason is FailureReason.REFUSED
    assert "run_this" in reply.detail


def test_a_plan_has_one_spelling(fleet: ToyFleet) -> None:
    """Two texts of one plan would be two plans to whoever compares digests."""
    reply = failed(fleet, spelt(fleet, PLAN.to_json().replace('"run_id":', '"run_id": ')))
    assert reply.reason is FailureReason.REFUSED
    assert "one spelling" in reply.detail
    assert isinstance(fit(fleet, spelt(fleet, PLAN.to_json())), Ready)


@pytest.mark.parametrize("lack", [b"", b"\0" * 40])
def test_an_offer_that_cannot_be_read_is_refused(fleet: ToyFleet, lack: bytes) -> None:
    assert failed(fleet, fit_request(fleet, PLAN, STATE, offer=lack)).reason is FailureReason.REFUSED


def test_an_offer_of_another_coordinator_is_refused(fleet: ToyFleet) -> None:
    stranger = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)}, seed=1)
    forged = replace(fleet, coordinator=stranger.coordinator)
    reply = failed(fleet, fit_request(forged, PLAN, STATE))
    assert reply.reason is FailureReason.PROTOCOL
    assert "bad-signature" in reply.detail
    assert given(fleet).fitted == []


def test_a_roster_without_this_device_is_refused(fleet: ToyFleet) -> None:
    terms = toy_terms(fleet.members()[1:], PLAN, STATE)
    reply = failed(fleet, fit_request(fleet, PLAN, STATE, terms=terms))
    assert (reply.reason, "not-on-roster" in reply.detail) == (FailureReason.PROTOCOL, True)


def test_a_block_of_another_length_than_the_device_builds_is_refused(fleet: ToyFleet) -> None:
    wide = toy_terms(fleet.members(), PLAN, toy_state(toy_spec({"head": 6, "bitfit": 5})))
    terms = toy_terms(fleet.members(), PLAN, STATE, blocks=wide.blocks)
    reply = failed(fleet, fit_request(fleet, PLAN, STATE, terms=terms))
    assert reply.reason is FailureReason.REFUSED
    assert "another blocks" in reply.detail


def signed_for(fleet: ToyFleet, values: Mapping[str, bytes]) -> FitRequest:
    """A request of round 2 whose signed work and history name exactly these bytes as the state."""
    left = state_digest({BlockId(name): hashlib.sha256(value).hexdigest() for name, value in values.items()})
    task = toy_task(PLAN, round_id=2, past=toy_past(PLAN, STATE, rounds=1, left=left))
    work = encode(replace(task.work(STATE), state=left))
    terms = toy_terms(fleet.members(), PLAN, STATE, task, work=work_digest(work))
    payloads = tuple(BlockPayload(block_id=BlockId(name), values=value) for name, value in values.items())
    return fit_request(fleet, PLAN, STATE, task=task, terms=terms, work=work, payloads=payloads)


def bytes_of(state: AdapterState) -> dict[str, bytes]:
    return {str(block_id): state[block_id].astype("<f4").tobytes() for block_id in state}


@pytest.mark.parametrize("extra", [b"\0", b"\0\0\0\0", b"\0\0\xc0\x7f" * 2])
def test_a_state_of_the_wrong_length_is_refused(fleet: ToyFleet, extra: bytes) -> None:
    good = bytes_of(STATE)
    reply = failed(fleet, signed_for(fleet, {**good, "head": good["head"] + extra}))
    assert reply.reason is FailureReason.REFUSED
    assert "head: expected 16 bytes" in reply.detail


@pytest.mark.parametrize("bad", [np.nan, np.inf, -3.4e38, np.nextafter(np.float32(MAX_STATE), np.float32(np.inf))])
def test_a_state_that_is_not_finite_or_out_of_range_is_refused(fleet: ToyFleet, bad: float) -> None:
    reply = failed(fleet, signed_for(fleet, {**bytes_of(STATE), "head": np.array([0, bad, 0, 0], "<f4").tobytes()}))
    assert reply.reason is FailureReason.REFUSED
    assert "expected finite values of at most 10000" in reply.detail
    assert given(fleet).fitted == []


@pytest.mark.parametrize("place", [384 * 1536 - 1, 2**24])
def test_a_block_that_nobody_trains_may_name_any_weight_by_its_number(fleet: ToyFleet, place: int) -> None:
    """FISH writes places of weights into the state: on any base but a toy they are far above a coordinate's range."""
    frozen = np.array([place, 0, 1], "<f4").tobytes()
    assert isinstance(fit(fleet, signed_for(fleet, {**bytes_of(STATE), str(FROZEN): frozen})), Ready)


@pytest.mark.parametrize("bad", [2.0**24 + 2, 20_000.5, -(2.0**25), np.nan, np.inf])
def test_a_block_that_nobody_trains_holds_no_other_large_number(fleet: ToyFleet, bad: float) -> None:
    frozen = np.array([0, bad, 0], "<f4").tobytes()
    reply = failed(fleet, signed_for(fleet, {**bytes_of(STATE), str(FROZEN): frozen}))
    assert "expected finite values of at most 10000" in reply.detail


def test_a_block_that_is_trained_names_no_weight(fleet: ToyFleet) -> None:
    large = np.array([0, 20_000, 0, 0], "<f4").tobytes()
    assert "of at most 10000" in failed(fleet, signed_for(fleet, {**bytes_of(STATE), "head": large})).detail


def test_a_state_at_the_edge_of_its_range_is_taken(fleet: ToyFleet) -> None:
    edge = np.array([MAX_STATE, -MAX_STATE, 0, 0], "<f4").tobytes()
    assert isinstance(fit(fleet, signed_for(fleet, {**bytes_of(STATE), "head": edge})), Ready)


def test_a_state_with_a_block_too_few_or_too_many_is_not_the_state(fleet: ToyFleet) -> None:
    good = bytes_of(STATE)
    few = {name: value for name, value in good.items() if name != "head"}
    for values in (few, {**good, "ia3": b"\0" * 4}):
        assert failed(fleet, signed_for(fleet, values)).reason is FailureReason.MISSING_STATE


def test_a_device_tells_its_own_operator_what_a_range_cuts_off_and_nobody_else(fleet: ToyFleet) -> None:
    told: list[str] = []
    plan = toy_plan(SPEC)  # whose range is 4
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    given(fleet).deltas[BlockId("head")] = np.array([0, 5.0, -7.0, 4.0], np.float32)
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE)), Ready)
    assert told == ["head: 2 of 4 coordinates were beyond 4, and were cut. Set secagg.max_abs if this goes on."]
    given(fleet).deltas[BlockId("head")] = np.array([0, 3.0, -4.0, 4.0], np.float32)
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE, task=toy_task(plan, attempt=2))), Ready)
    assert len(told) == 2, "the kept result is cut again"
    assert isinstance(fit(fleet, fit_request(fleet, plan, STATE, task=toy_task(plan, round_id=2))), Ready)
    assert len(told) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_never_enters_a_sum(fleet: ToyFleet, bad: float) -> None:
    given(fleet).deltas[BlockId("head")] = np.array([0, bad, 0, 0], np.float32)
    reply = failed(fleet, fit_request(fleet, PLAN, STATE))
    assert reply.reason is FailureReason.UNABLE
    assert "head" in reply.detail


def test_a_loss_that_is_not_finite_never_enters_a_sum() -> None:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}, measured=(np.nan, 0, 4)) for i in range(4)})
    assert failed(fleet, fit_request(fleet, PLAN, STATE)).reason is FailureReason.UNABLE


class Broken(GivenTrainer):
    """Fails where a test says so."""

    def __init__(self, error: Exception, *, at: str = "fit") -> None:
        super().__init__(SPEC, {"head": one_hot(4, 0)})
        self._error, self._at = error, at

    def spec(self, plan):  # type: ignore[no-untyped-def]
        if self._at == "spec":
            raise self._error
        return super().spec(plan)

    def fit(self, plan, state, request, effort):  # type: ignore[no-untyped-def]
        raise self._error


@pytest.mark.parametrize(
    ("error", "at", "reason"),
    [
        (PolicyRefused("Expected epsilon <= 2, found 8."), "spec", FailureReason.REFUSED),
        (MemoryError(), "fit", FailureReason.UNABLE),
        (ResourceMissing("Expected the base sha256:toy, found nothing."), "spec", FailureReason.REFUSED),
        (ConfigInvalid("Expected a model with biases, found none."), "spec", FailureReason.REFUSED),
        (DataInvalid("row 3: found the label 'secret diagnosis'"), "fit", FailureReason.UNABLE),
    ],
)
def test_whatever_the_trainer_cannot_do_is_answered_by_a_reason(
    error: Exception, at: str, reason: FailureReason
) -> None:
    good = {f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(1, 4)}
    fleet = enrol({"d0": Broken(error, at=at), **good})
    reply = failed(fleet, fit_request(fleet, PLAN, STATE))
    assert reply.reason is reason
    assert reply.detail, "the device's own log has the cause"


def test_a_repeated_fit_request_gets_the_same_bytes_without_training_twice(fleet: ToyFleet) -> None:
    request = encode(fit_request(fleet, PLAN, STATE))
    first = fleet.devices[NODE].handle(Stage.FIT, request)
    assert fleet.devices[NODE].handle(Stage.FIT, request) == first
    fleet.restart(NODE)
    assert fleet.devices[NODE].handle(Stage.FIT, request) == first
    assert len(given(fleet).fitted) == 1


def test_a_second_attempt_at_the_same_work_reuses_the_training(fleet: ToyFleet) -> None:
    first = fit(fleet, fit_request(fleet, PLAN, STATE))
    kept = opened(fleet).inputs
    again = fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, attempt=2))
    second = fit(fleet, replace(again, payloads=()))
    assert isinstance(second, Ready)
    assert second != first, "each attempt has keys of its own"
    assert opened(fleet).inputs == kept
    assert len(given(fleet).fitted) == 1


@pytest.mark.parametrize("now", [{"bitfit": np.ones(5, np.float32)}, {"head": one_hot(4, 0), "bitfit": np.ones(5)}])
def test_a_second_attempt_adds_what_was_trained_though_the_device_trains_something_else_by_now(
    fleet: ToyFleet, now: dict[str, np.ndarray]
) -> None:
    assert isinstance(fit(fleet, fit_request(fleet, PLAN, STATE)), Ready)
    kept = opened(fleet)
    given(fleet).deltas = {BlockId(name): delta for name, delta in now.items()}
    assert isinstance(fit(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, attempt=2))), Ready)
    assert opened(fleet).inputs == kept.inputs
    advertised = decode(decode(opened(fleet).ready, Ready).advertise, secagg.Advertise)
    assert set(advertised.blocks) == {part.block_id for part in kept.inputs}


def test_a_kept_result_is_the_result_whatever_training_comes_to_give() -> None:
    """A field that is not kept is zero in every sum, and nobody is told."""
    result = LocalResult(
        deltas={BlockId("head"): one_hot(4, 1)},
        trained_loss=1.5,
        trained=2,
        evaluated_loss=2.5,
        correct=3,
        evaluated=4,
        lanes=np.array([0.25, 0.75]),
        probes=np.array([1.5, 1.25]),
    )
    back = KeptResult.of(result).result
    for field in fields(LocalResult):
        if field.name not in ("troubles", "noise"):  # said at once, and to nobody else; kept in a place of its own
            assert np.any(getattr(result, field.name)) or field.name == "deltas", f"nothing was asked of {field.name}"
            np.testing.assert_equal(getattr(back, field.name), getattr(result, field.name))


def test_other_work_within_a_round_is_refused(fleet: ToyFleet) -> None:
    """Two attempts at a round from two states would be two inputs of one device under one round's number."""
    later, task = STATE.replace({BlockId("bitfit"): np.ones(5, np.float32)}), toy_task(PLAN, round_id=2)
    fit(fleet, fit_request(fleet, PLAN, STATE, task=task))
    past = toy_past(PLAN, STATE, rounds=1, left=state_digest(later.digests))
    reply = failed(fleet, fit_request(fleet, PLAN, later, task=toy_task(PLAN, round_id=2, attempt=2, past=past)))
    assert reply.reason is FailureReason.REFUSED
    assert "other work" in reply.detail
    assert len(given(fleet).fitted) == 1


def test_another_round_is_other_work_even_if_everything_else_is_the_same(fleet: ToyFleet) -> None:
    fit(fleet, fit_request(fleet, PLAN, STATE))
    assert isinstance(fit(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, round_id=2))), Ready)
    assert len(given(fleet).fitted) == 2


def test_an_evaluation_asks_for_the_metrics_alone(fleet: ToyFleet) -> None:
    reply = fit(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, train=False)))
    assert isinstance(reply, Ready)
    assert decode(reply.advertise, secagg.Advertise).blocks == ("metrics", "task-metrics", "train-loss")
    assert [part.block_id for part in opened(fleet).inputs] == ["metrics", "task-metrics", "train-loss"]


def test_a_device_never_trains_the_frozen_blocks(fleet: ToyFleet) -> None:
    given(fleet).deltas[FROZEN] = np.ones(3, np.float32)
    reply = fit(fleet, fit_request(fleet, PLAN, STATE))
    assert isinstance(reply, Ready)
    assert decode(reply.advertise, secagg.Advertise).blocks == ("head", "metrics", "task-metrics", "train-loss")
    assert {part.block_id for part in opened(fleet).inputs} == {"head", "metrics", "task-metrics", "train-loss"}


@pytest.mark.parametrize(("examples", "weight"), [(5, 2**-5), (100, 1.0), (4000, 1.0), (0, 2**-7)])
def test_a_delta_is_weighted_by_its_capped_size_class(examples: int, weight: float) -> None:
    plan = toy_plan(SPEC, weight="examples", max_weight=100, secagg=TERMS)
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, 1)}, examples=examples) for i in range(4)})
    fit(fleet, fit_request(fleet, plan, STATE))
    inputs = {part.block_id: np.frombuffer(part.values, "<f4") for part in opened(fleet).inputs}
    np.testing.assert_array_equal(inputs[BlockId("head")], np.float32(weight) * one_hot(4, 1))
    np.testing.assert_array_equal(inputs[BlockId("metrics")], np.array([weight * 0.75, weight * 0.5], np.float32))
    np.testing.assert_array_equal(inputs[BlockId("train-loss")], np.array([weight * 2.0], np.float32))
    advert = decode(decode(opened(fleet).ready, Ready).advertise, secagg.Advertise)
    assert advert.weight_class == min(7, size_class(examples)), "public, and all that is"


STRAY: list[Callable[[], object]] = [
    lambda: secagg.ShareRequest(context=b"", members=b"", root=b"", classes=b"", owners=(), neighbours=b"", path=b""),
    lambda: secagg.MaskRequest(context=b"", sharers=b"", ciphertexts=()),
    lambda: secagg.ConsistRequest(context=b"", survivors=b""),
    lambda: secagg.RevealRequest(context=b"", survivors=b"", signers=b"", signatures=b"", masked=b""),
]
LATER = [Stage.SHARE, Stage.MASK, Stage.CONSIST, Stage.REVEAL]


@pytest.mark.parametrize(("stage", "make"), list(zip(LATER, STRAY, strict=True)))
def test_a_stray_request_on_an_idle_device_fails_with_a_reason(
    fleet: ToyFleet, stage: Stage, make: Callable[[], object]
) -> None:
    reply = decode(fleet.devices[NODE].handle(stage, encode(make())), (Failure, *secagg.REPLIES))
    assert isinstance(reply, Failure)
    assert reply.reason is FailureReason.PROTOCOL


@pytest.mark.parametrize(("stage", "make"), list(zip(LATER, STRAY, strict=True)))
def test_a_request_that_does_not_fit_the_open_round_is_refused(
    fleet: ToyFleet, stage: Stage, make: Callable[[], object]
) -> None:
    fit(fleet, fit_request(fleet, PLAN, STATE))
    reply = decode(fleet.devices[NODE].handle(stage, encode(make())), (Failure, *secagg.REPLIES))
    assert isinstance(reply, secagg.Refusal)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_malformed_payload_is_an_error_of_the_wire_and_changes_nothing(fleet: ToyFleet, stage: Stage) -> None:
    good = encode(fit_request(fleet, PLAN, STATE))
    for payload in (b"", b"FP", b"\0" * 64, good[:-1], good + b"\0", encode(Ready(advertise=b""))):
        with pytest.raises(WireError):
            fleet.devices[NODE].handle(stage, payload)
    assert fleet.stores["d0"].values == {}


@pytest.mark.parametrize("stage", [Stage.PROFILE, *LATER])
def test_a_request_of_another_stage_is_an_error_of_the_wire(fleet: ToyFleet, stage: Stage) -> None:
    with pytest.raises(WireError):
        fleet.devices[NODE].handle(stage, encode(fit_request(fleet, PLAN, STATE)))


def test_what_was_trained_for_one_round_is_never_summed_in_another(fleet: ToyFleet) -> None:
    """The difference of two sums of the same inputs, with one device more in the first, is that device's delta."""
    fit(fleet, fit_request(fleet, PLAN, STATE))
    given(fleet).deltas[BlockId("head")] = np.full(4, np.nan, np.float32)
    reply = failed(fleet, fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, round_id=2)))
    assert reply.reason is FailureReason.UNABLE
    kept = fleet.stores["d0"].values.get("open-round")
    assert kept is None or decode(kept, OpenRound).inputs == ()


def test_the_store_record_of_the_state_is_what_was_received(fleet: ToyFleet) -> None:
    fit(fleet, fit_request(fleet, PLAN, STATE))
    held = decode(fleet.stores["d0"].values["held-blocks"], HeldBlocks)
    vectors = {part.block_id: np.frombuffer(part.values, "<f4").astype(np.float32) for part in held.blocks}
    assert AdapterState(SPEC, vectors).digests == STATE.digests


class Waiting(GivenTrainer):
    """Its first training waits to be let go."""

    def __init__(self) -> None:
        super().__init__(SPEC, {"head": one_hot(4, 0)})
        self.begun, self.go, self.asked = threading.Event(), threading.Event(), 0

    def fit(self, plan, state, request, effort):  # type: ignore[no-untyped-def]
        self.asked += 1
        if self.asked == 1:
            self.begun.set()
            assert self.go.wait(30)
        return super().fit(plan, state, request, effort)


def test_a_slow_training_never_overwrites_a_newer_round() -> None:
    slow = Waiting()
    fleet = enrol({"d0": slow, **{f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(1, 4)}})
    old, new = (fit_request(fleet, PLAN, STATE, task=toy_task(PLAN, round_id=number)) for number in (1, 2))
    first = threading.Thread(target=fit, args=(fleet, old))
    second = threading.Thread(target=fit, args=(fleet, new))
    first.start()
    assert slow.begun.wait(30)
    second.start()
    second.join(0.3)  # enough for it to finish, if it did not wait for its turn
    slow.go.set()
    first.join(30)
    second.join(30)
    assert opened(fleet).round_id == 2


def test_a_refusal_of_the_secure_sum_at_its_last_step_leaves_as_one_and_its_reason_stays(
    fleet: ToyFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread of the device may have gone on in the run since the terms were looked at."""
    late = secagg.Refusal(reason=secagg.Reason.REPLAYED, detail="Expected a round after 7.")
    monkeypatch.setattr(secagg.DeviceSession, "begin", lambda *_, **__: late)
    found = failed(fleet, fit_request(fleet, PLAN, STATE))
    assert found.reason is FailureReason.PROTOCOL
    assert "Expected a round after 7." in found.detail
    assert given(fleet).fitted == [], "nothing was trained for it"
