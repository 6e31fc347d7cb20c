"""Whatever decides what a device puts into a sum is in the signed terms, by value or by digest.

The types say it (a request has no loose field), and a property over every byte of a request does.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.local import Trainer
from fedpeft.round.messages import (
    BlockPayload,
    Failure,
    FailureReason,
    FitRequest,
    Profile,
    ProfileRequest,
    Ready,
    WorkTerms,
)
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.round.signed_request import read_signed
from fedpeft.round.transport import Stage
from fedpeft.round.work import COSINE_TOLERANCE, Work, accept_work, work_digest, work_terms
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, fit_request, toy_task, toy_terms
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import WireError, decode, encode

SPEC = toy_spec({"head": 4, "bitfit": 5})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(4))
NODE = NodeId(1000)
SCAFFOLD = PLAN.model_copy(update={"train": PLAN.train.model_copy(update={"scaffold": True, "optimizer": "sgd"})})
CONTROLS = {BlockId("head"): np.arange(4, dtype=np.float32), BlockId("bitfit"): np.ones(5, np.float32)}


def toy_fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})


@dataclass(frozen=True)
class Refusal:
    """What left a device that failed, and what is in its own log."""

    reason: FailureReason
    detail: str


def answer(fleet: ToyFleet, payload: bytes) -> Ready | Refusal:
    told: list[str] = []
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    reply = decode(fleet.devices[NODE].handle(Stage.FIT, payload), (Ready, Failure))
    assert isinstance(reply, Ready | Failure)
    return Refusal(reason=reply.reason, detail=" ".join(told)) if isinstance(reply, Failure) else reply


def trained(fleet: ToyFleet) -> list[Work]:
    trainer: Trainer = fleet.trainers["d0"]
    assert isinstance(trainer, GivenTrainer)
    return trainer.fitted


def signed(fleet: ToyFleet, asked: LearningPlan, round_id: int = 1, /, **changes: object) -> bytes:
    """A request whose work a coordinator has changed, and signed."""
    task = toy_task(asked, round_id=round_id)
    work = encode(replace(task.work(STATE), **changes))  # type: ignore[arg-type]
    terms = toy_terms(fleet.members(), asked, STATE, task, work=work_digest(work))
    return encode(fit_request(fleet, asked, STATE, task=task, terms=terms, work=work))


def test_fit_request_has_no_field_outside_the_digests() -> None:
    """Signed, digested, or a carrier of bytes that are digested: a new field must be one of these, in protocol.md."""
    asked = {"offer", "learning", "work", "history", "payloads", "controls", "sums"}
    assert {field.name for field in fields(FitRequest)} == asked
    derived = {"first_step", "learning_rate_factor", "learning_rate_scale", "eval_examples", "train", "blocks"}
    assert {field.name for field in fields(WorkTerms)} == derived | {"plan", "state", "controls"}
    assert {field.name for field in fields(Work)} == derived | {
        "round_id",
        "bucket",
        "controls",
        "history",
        "earlier",
        "draws",
        "noise",
    }


@pytest.fixture(scope="module")
def whole() -> tuple[ToyFleet, bytes]:
    """A request that has something in every field."""
    fleet = toy_fleet()
    task = replace(toy_task(SCAFFOLD, round_id=2), controls=CONTROLS)  # of a late joiner: who was there knows better
    return fleet, encode(fit_request(fleet, SCAFFOLD, STATE, task=task))


def test_the_request_that_is_changed_below_is_taken_unchanged(whole: tuple[ToyFleet, bytes]) -> None:
    fleet, request = whole
    fleet.restart(NODE, wiped=True)
    assert isinstance(answer(fleet, request), Ready)
    assert set(trained(fleet)[-1].controls) == set(CONTROLS)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_one_changed_byte_of_any_input_is_refused(whole: tuple[ToyFleet, bytes], place: float, flipped: int) -> None:
    fleet, request = whole
    changed = bytearray(request)
    changed[int(place * len(changed))] ^= flipped
    fleet.restart(NODE, wiped=True)
    before = len(trained(fleet))
    try:
        reply = answer(fleet, bytes(changed))
    except WireError:
        pass
    else:
        assert isinstance(reply, Refusal)
    assert len(trained(fleet)) == before


CHANGED: dict[str, object] = {
    "plan": bytes(32),
    "state": bytes(32),
    "controls": bytes(32),
    "blocks": (BlockId("head"),),
    "first_step": 4,
    "learning_rate_factor": 0.0,
    "learning_rate_scale": 2.0,
    "eval_examples": 1,
    "train": False,
}


def test_every_field_of_the_work_is_changed_below() -> None:
    assert set(CHANGED) == {field.name for field in fields(WorkTerms)}


@pytest.mark.parametrize("field", CHANGED)
def test_work_that_does_not_follow_from_the_plan_is_refused_though_it_is_signed(field: str) -> None:
    fleet = toy_fleet()
    reply = answer(fleet, signed(fleet, PLAN, **{field: CHANGED[field]}))
    assert isinstance(reply, Refusal)
    assert trained(fleet) == []
    assert isinstance(answer(fleet, signed(fleet, PLAN)), Ready), "unchanged, the same request is taken"


@pytest.mark.parametrize("factor", [-1e6, -0.5, 1.0 + 2**-30, 2.0, 1e300])
def test_a_learning_rate_factor_outside_its_range_is_refused(factor: float) -> None:
    fleet = toy_fleet()
    reply = answer(fleet, signed(fleet, PLAN, learning_rate_factor=factor))
    assert isinstance(reply, Refusal)
    assert "learning_rate_factor" in reply.detail


def test_a_cosine_that_another_library_rounds_otherwise_is_taken_as_it_was_sent() -> None:
    cosine = PLAN.model_copy(update={"train": PLAN.train.model_copy(update={"decay": "cosine"})})
    ours = work_terms(cosine, SPEC, 7, state=b"").learning_rate_factor
    fleet = toy_fleet()
    assert isinstance(
        answer(fleet, signed(fleet, cosine, 7, learning_rate_factor=float(np.nextafter(ours, 1.0)))), Ready
    )
    assert trained(fleet)[0].learning_rate_factor == np.nextafter(ours, 1.0)
    reply = answer(toy_fleet(), signed(toy_fleet(), cosine, 7, learning_rate_factor=ours + 1e-9))
    assert isinstance(reply, Refusal)


@pytest.mark.parametrize("round_id", [0, 102, 10**6])
def test_a_round_that_the_plan_does_not_have_is_refused(round_id: int) -> None:
    fleet = toy_fleet()
    terms = toy_terms(fleet.members(), PLAN, STATE, round_id=round_id)
    reply = answer(fleet, encode(fit_request(fleet, PLAN, STATE, terms=terms)))
    assert isinstance(reply, Refusal)
    assert trained(fleet) == []


def test_only_idle_tiers_may_be_left_out_and_only_where_the_rule_drops_them() -> None:
    some = work_terms(PLAN, SPEC, 1, state=b"", blocks=[BlockId("head")])
    with pytest.raises(SpecMismatch, match="blocks"):
        accept_work(PLAN, SPEC, 1, some, bucket=0, controls=())
    dropping = PLAN.model_copy(update={"aggregate": PLAN.aggregate.model_copy(update={"auto_rank": 0.1})})
    few = replace(some, plan=work_terms(dropping, SPEC, 1, state=b"").plan)
    assert accept_work(dropping, SPEC, 1, few, bucket=0, controls=()).blocks == ("head",)
    with pytest.raises(SpecMismatch, match="blocks"):
        accept_work(dropping, SPEC, 1, replace(few, blocks=(*few.blocks, BlockId("ia3"))), bucket=0, controls=())


TERMS: dict[str, object] = {
    "mode": secagg.Mode.FAST,
    "min_cohort": 4,
    "corrupt_fraction": 0.0,
    "dropout_fraction": 0.3,
    "work": bytes(32),
    "run_id": "another#1",
}


@pytest.mark.parametrize("field", TERMS)
def test_terms_that_the_plan_does_not_give_are_refused(field: str) -> None:
    fleet = toy_fleet()
    terms = toy_terms(fleet.members(), PLAN, STATE, **{field: TERMS[field]})
    reply = answer(fleet, encode(fit_request(fleet, PLAN, STATE, terms=terms)))
    assert isinstance(reply, Refusal)
    assert reply.reason is FailureReason.REFUSED
    assert trained(fleet) == []


def test_a_narrower_clipping_range_or_ring_than_the_plan_says_is_refused() -> None:
    fleet = toy_fleet()
    honest = toy_terms(fleet.members(), PLAN, STATE)
    narrow = tuple(replace(part, max_abs=part.max_abs / 2) for part in honest.blocks[0].ranges)
    for block in (replace(honest.blocks[0], ranges=narrow), replace(honest.blocks[0], bits=16)):
        terms = replace(honest, blocks=(block, *honest.blocks[1:]))
        reply = answer(fleet, encode(fit_request(fleet, PLAN, STATE, terms=terms)))
        assert isinstance(reply, Refusal)
        assert "blocks" in reply.detail


def changed_plan(section: str, **changes: object) -> LearningPlan:
    return PLAN.model_copy(update={section: getattr(PLAN, section).model_copy(update=changes)})


@pytest.mark.parametrize(
    "plan",
    [
        changed_plan("task", labels=("no", "yes", "rare")),
        changed_plan("train", local_steps=1),
        changed_plan("rounds", count=7),
        PLAN.model_copy(update={"seed": 1}),
        PLAN.model_copy(update={"max_state": 1e30}),
    ],
    ids=["labels", "steps", "rounds", "seed", "range"],
)
def test_a_device_refuses_a_plan_that_changed_within_a_run(plan: LearningPlan) -> None:
    fleet = toy_fleet()
    assert isinstance(answer(fleet, encode(fit_request(fleet, PLAN, STATE))), Ready)
    fleet.restart(NODE)
    reply = answer(fleet, encode(fit_request(fleet, plan, STATE, task=toy_task(plan, round_id=2))))
    assert isinstance(reply, Refusal)
    assert "began" in reply.detail
    assert len(trained(fleet)) == 1


def test_a_repeated_offer_gets_the_same_bytes_and_nothing_of_it_is_read() -> None:
    fleet = toy_fleet()
    request = fit_request(fleet, PLAN, STATE)
    first = fleet.devices[NODE].handle(Stage.FIT, encode(request))
    lie = replace(request, learning="not even a plan", work=b"", payloads=(), controls=())
    assert fleet.devices[NODE].handle(Stage.FIT, encode(lie)) == first
    assert len(trained(fleet)) == 1


class Untouchable(GivenTrainer):
    """Nothing of it may be asked before the signature is checked."""

    def spec(self, plan: LearningPlan) -> object:  # type: ignore[override]
        raise AssertionError("the plan was built")


def test_nothing_is_built_for_terms_that_another_key_signed() -> None:
    good = {f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(1, 4)}
    fleet = enrol({"d0": Untouchable(SPEC, {}), **good})
    forged = replace(fleet, coordinator=enrol(good, seed=1).coordinator)
    reply = answer(fleet, encode(fit_request(forged, PLAN, STATE)))
    assert isinstance(reply, Refusal)
    assert "bad-signature" in reply.detail
    assert fleet.stores["d0"].values == {}


def test_a_plan_is_read_for_its_base_only_under_the_coordinators_signature() -> None:
    fleet = toy_fleet()
    request, key = fit_request(fleet, PLAN, STATE), fleet.coordinator.public
    assert read_signed(key, request).plan == PLAN
    other = PLAN.model_copy(update={"base": "sha256:another"})
    for wrong in (replace(request, learning=other.to_json()), replace(request, work=b"\0" * 80)):
        with pytest.raises(SpecMismatch, match="digest"):
            read_signed(key, wrong)
    with pytest.raises(SpecMismatch, match="another key"):
        read_signed(fleet.keys["d0"].public, request)


def test_a_profile_tells_of_no_run_but_the_one_that_asks() -> None:
    fleet = toy_fleet()
    assert isinstance(answer(fleet, encode(fit_request(fleet, PLAN, STATE))), Ready)
    for run_id, held in (("toy-run", len(SPEC.blocks)), ("another", 0)):
        reply = fleet.devices[NODE].handle(Stage.PROFILE, encode(ProfileRequest(run_id=run_id)))
        assert len(decode(reply, Profile).held) == held


def test_every_round_of_an_honest_schedule_is_accepted() -> None:
    """Property: what ``work_terms`` proposes, ``accept_work`` takes, for every schedule, rule and round."""
    for decay in ("constant", "linear", "cosine"):
        for warmup in (0, 3):
            for rule in ("nested", "fedit", "rolora", "fedsa"):
                plan = PLAN.model_copy(
                    update={
                        "rounds": PlannedRounds(count=9, eval_examples=5),
                        "train": PLAN.train.model_copy(update={"decay": decay, "warmup_rounds": warmup}),
                        "aggregate": PLAN.aggregate.model_copy(update={"rule": rule}),
                    }
                )
                for round_id in range(1, 11):
                    terms = work_terms(plan, SPEC, round_id, state=b"")
                    work = accept_work(plan, SPEC, round_id, terms, bucket=0, controls=())
                    assert 0.0 <= work.learning_rate_factor <= 1.0
                    assert work.learning_rate_scale == 0.0  # of a plan that measures none
                    assert work.train is (round_id < 10)


def test_the_rounds_section_has_nothing_that_the_plan_lacks_and_a_device_needs() -> None:
    """Deadlines, selection and patience are the coordinator's own; whoever adds a field decides which it is."""
    own = {"min_devices", "fraction", "over_select", "max_failures", "checkpoints_kept"}
    own |= {"fit_deadline_s", "stage_deadline_s", "gather_deadline_s", "metric", "patience"}
    own |= {"evaluation_deadline_s"}
    assert set(Rounds.model_fields) == own | set(PlannedRounds.model_fields)


@pytest.mark.parametrize(
    "controls",
    [
        [("head", bytes(12))],
        [("head", bytes(20))],
        [("head", b"")],
        [("elsewhere", bytes(16))],
        [("head", bytes(16)), ("head", bytes(16))],
        [("head", np.array([0, 0, np.nan, 0], "<f4").tobytes())],
        [("head", np.array([0, 0, 0, np.inf], "<f4").tobytes())],
    ],
)
def test_controls_are_one_finite_vector_a_block_of_its_length(controls: list[tuple[str, bytes]]) -> None:
    payloads = tuple(BlockPayload(block_id=BlockId(name), values=values) for name, values in controls)
    work = work_terms(SCAFFOLD, SPEC, 2, state=bytes(32), controls=payloads)
    with pytest.raises(SpecMismatch, match=r"control (for a block|of head)"):
        accept_work(SCAFFOLD, SPEC, 2, work, bucket=0, controls=payloads)
    good = (BlockPayload(block_id=BlockId("head"), values=np.arange(4, dtype="<f4").tobytes()),)
    work = work_terms(SCAFFOLD, SPEC, 2, state=bytes(32), controls=good)
    found = accept_work(SCAFFOLD, SPEC, 2, work, bucket=0, controls=good).controls
    assert {name: vector.tolist() for name, vector in found.items()} == {"head": [0.0, 1.0, 2.0, 3.0]}


@pytest.mark.parametrize("factor", [1.0 + COSINE_TOLERANCE / 2, 1.0 + 2**-52])
def test_a_factor_above_one_is_refused_however_little_it_is(factor: float) -> None:
    reply = answer(toy_fleet(), signed(toy_fleet(), PLAN, learning_rate_factor=factor))
    assert isinstance(reply, Refusal)
    assert "learning_rate_factor" in reply.detail
