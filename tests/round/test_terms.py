"""The terms of a secure sum: who, which blocks, how wide."""

from dataclasses import replace

import pytest

from fedpeft import secagg
from fedpeft.config.model import SecureAggregation
from fedpeft.entropy import seeded_entropy
from fedpeft.ids import NodeId
from fedpeft.ring import SumRange
from fedpeft.round.metrics import METRIC_BITS, METRIC_RANGES, TRAIN_LOSS_RANGES
from fedpeft.round.summing import SecureSum
from fedpeft.round.task import Member, RoundTask
from fedpeft.round.transport import Requests
from fedpeft.testing.fleet import enrol, toy_task, toy_terms
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state

SPEC = toy_spec({"head": 4, "bitfit": 5})
PLAN = toy_plan(SPEC)
FLEET = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(3)}, organisations={"d2": "d1"})


def terms_of(members: list[Member] | None = None, task: RoundTask | None = None, **secure: object) -> secagg.RoundSpec:
    plan = toy_plan(SPEC, secagg=SecureAggregation.model_validate(secure))
    task = replace(task or toy_task(plan, round_id=3, attempt=2), plan=plan)
    return toy_terms(members or FLEET.members(), plan, toy_state(SPEC), task, stage_deadline_s=7.0)


def test_the_roster_is_the_members_in_their_order() -> None:
    members = FLEET.members()
    spec = terms_of(members[::-1])
    assert [person.participant_id for person in spec.participants] == [1, 2, 3]
    assert [person.device for person in spec.participants] == ["d2", "d1", "d0"]
    assert [person.organisation for person in spec.participants] == ["d1", "d1", "d0"]
    assert [person.identity for person in spec.participants] == [m.profile.identity for m in members[::-1]]


def test_every_trainable_block_is_summed_and_the_metrics_come_last() -> None:
    spec = terms_of(max_abs=2.0, bits=16)
    assert [(block.block_id, block.length, block.bits) for block in spec.blocks] == [
        ("head", 4, 16),
        ("bitfit", 5, 16),
        ("metrics", 2, METRIC_BITS),
        ("task-metrics", 4, METRIC_BITS),
        ("train-loss", 1, METRIC_BITS),
    ]
    assert {part.max_abs for block in spec.blocks[:2] for part in block.ranges} == {2.0}
    cells = (SumRange(length=4, max_abs=1.0),)
    assert [block.ranges for block in spec.blocks[2:]] == [METRIC_RANGES, cells, TRAIN_LOSS_RANGES]


def test_each_tensor_has_a_range_of_its_own() -> None:
    adapter = toy_spec({"head": 4})
    head = adapter.blocks[1]
    two = tuple(replace(head.tensors[0], name=name) for name in "ab")
    adapter = replace(adapter, blocks=(replace(head, tensors=two),))
    spec = toy_terms(FLEET.members(), PLAN, toy_state(adapter))
    assert [part.length for part in spec.blocks[0].ranges] == [4, 4]


def test_an_evaluation_sums_nothing_but_the_metrics() -> None:
    assert [block.block_id for block in terms_of(task=toy_task(PLAN, train=False)).blocks] == [
        "metrics",
        "task-metrics",
        "train-loss",
    ]


@pytest.mark.parametrize(("mode", "expected"), [("full", secagg.Mode.FULL), ("fast", secagg.Mode.FAST)])
def test_the_terms_say_what_the_config_says(mode: str, expected: secagg.Mode) -> None:
    spec = terms_of(mode=mode, min_cohort=4, corrupt_fraction=0.2, dropout_fraction=0.3)
    assert (spec.mode, spec.min_cohort, spec.corrupt_fraction, spec.dropout_fraction) == (expected, 4, 0.2, 0.3)
    assert (spec.run_id, spec.round_id, spec.attempt, spec.stage_deadline_s) == ("toy-run", 3, 2, 7.0)
    secagg.check_spec(spec)


def test_another_attempt_is_the_same_run_to_the_devices() -> None:
    """By its name a device knows in which rounds it has signed; it must not change when a coordinator restarts."""
    task = toy_task(PLAN)
    assert {terms_of(task=replace(task, attempt=attempt)).run_id for attempt in (1, 2, 3)} == {PLAN.run_id}


def test_a_sum_knows_by_whom_its_terms_were_signed_after_a_restart_too() -> None:
    """A coordinator goes on with a sum of its own only: no device would answer about another's."""
    own, other = (secagg.IdentityKey.generate(seeded_entropy(seed, "coordinators")) for seed in (1, 2))
    opened = SecureSum(terms_of(), own, seeded_entropy(3, "sum"))
    assert opened.signed_by(own.public)
    assert not opened.signed_by(other.public)


def test_what_is_sent_is_made_when_it_is_looked_up_and_for_nobody_else() -> None:
    made: list[int] = []
    requests = Requests([NodeId(3), NodeId(1)], lambda node: made.append(node) or bytes([node]))
    assert (len(requests), list(requests)) == (2, [3, 1])
    assert [node in requests for node in (NodeId(1), NodeId(2), NodeId(3), "1")] == [True, False, True, False]
    assert made == []
    assert requests[NodeId(3)] == b"\3"
    assert requests.get(NodeId(2)) is None
    with pytest.raises(KeyError):
        requests[NodeId(2)]
    assert made == [3]


def test_an_evaluation_has_no_learning_rate() -> None:
    assert toy_task(PLAN, round_id=PLAN.rounds.count).learning_rate_factor > 0.0
    assert toy_task(PLAN, round_id=PLAN.rounds.count + 1).learning_rate_factor == 0.0
