"""What a device puts into a sum, lane by lane."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.ids import SIZELESS, BlockId, RoundId, SizeClass
from fedpeft.privacy import CLIP_BIT, LOSS_LIMIT, NOISED_METRICS, Mechanism
from fedpeft.round.device.contribution import NOTHING_TRAINED, inputs_of
from fedpeft.round.device.draws import expanded
from fedpeft.round.local import LocalResult
from fedpeft.round.metrics import METRICS, TRAIN_LOSS
from fedpeft.round.noise import planned_mechanism
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import discounted
from fedpeft.round.work import Work
from fedpeft.testing.fleet import CLIENT_PRIVACY
from fedpeft.testing.trainers import toy_plan, toy_spec, toy_state

HEAD = BlockId("head")
SPEC = toy_spec({"head": 4})
STATE = toy_state(SPEC)
WORK = Work(
    round_id=RoundId(1),
    first_step=0,
    learning_rate_factor=1.0,
    learning_rate_scale=0.0,
    eval_examples=0,
    train=True,
    blocks=(HEAD,),
    bucket=0,
    controls={},
)


def sent(plan: LearningPlan, delta: float, noise: Mechanism | None, *owns: BlockId) -> dict[BlockId, np.ndarray]:
    result = LocalResult(
        deltas={HEAD: np.full(4, delta, np.float32)},
        trained_loss=12.0,
        trained=8,
        evaluated_loss=6.0,
        correct=3,
        evaluated=4,
    )
    parts = inputs_of(plan, WORK, STATE, result, frozenset(owns), noise, declared=SIZELESS, entropy=bytes)
    return {part.block_id: np.frombuffer(part.values, "<f4") for part in parts}


@pytest.mark.parametrize("clip", ["fixed", "adaptive"])
def test_the_bit_of_adaptive_clipping_says_whether_the_delta_was_cut_and_is_sent_where_the_terms_have_it(
    clip: str,
) -> None:
    privacy = CLIENT_PRIVACY.model_copy(update={"clip": clip})
    plan = toy_plan(SPEC).model_copy(update={"client_privacy": privacy})
    noise = planned_mechanism(privacy, plan.secagg, devices=8, l2_clip_norm=1.0, z=1.0, parameters=5)
    short, long = (sent(plan, delta, noise, HEAD, CLIP_BIT) for delta in (0.01, 10.0))
    if clip == "fixed":
        assert set(short) == set(long) == {HEAD}
        return
    weight = noise.terms.bit_weight
    assert short[CLIP_BIT].tolist() == [pytest.approx(weight)]
    assert long[CLIP_BIT].tolist() == [pytest.approx(-weight)]
    assert np.linalg.norm(long[HEAD]) <= 1.0 < 4 * 10.0


@pytest.mark.parametrize(("low", "high", "unit"), [(0.0, 2.0, 1.0), (-4.0, 4.0, 16.0)])
def test_losses_are_summed_in_the_units_of_the_task(low: float, high: float, unit: float) -> None:
    plan = toy_plan(SPEC)
    task = plan.task.model_copy(update={"kind": "regression", "labels": (), "range": (low, high)})
    assert task.loss_unit == unit
    inputs = sent(plan.model_copy(update={"task": task}), 0.01, None, HEAD, METRICS, TRAIN_LOSS)
    assert inputs[METRICS][0] == pytest.approx(6.0 / 4 / unit)
    assert inputs[TRAIN_LOSS][0] == pytest.approx(12.0 / 8 / unit)


@pytest.mark.parametrize(("late", "expected"), [(0, 7), (1, 6), (6, 6), (7, 5), (30, 5), (31, 4), (10**6, 0)])
def test_late_work_weighs_the_power_of_two_that_is_nearest_to_one_over_the_root(late: int, expected: int) -> None:
    found = discounted(SizeClass(7), late)
    assert found == expected
    if found:
        assert abs(math.log2(2.0 ** (found - 7) * math.sqrt(1 + late))) <= 0.5
    assert discounted(SizeClass(0), late) == 0


def test_the_draws_of_a_device_are_those_of_shake_256_and_each_call_has_its_own() -> None:
    """Written out: a device that is updated must round as it did, or an attempt that is repeated gives another sum."""
    draws = bytes(range(32))
    draw = expanded(draws)
    found = [draw(16), draw(40)]
    expected = [
        hashlib.shake_256(b"fedpeft/1 rounding" + draws + number.to_bytes(8, "big")).digest(size)
        for number, size in ((1, 16), (2, 40))
    ]
    assert found == expected


def test_a_device_that_could_use_no_example_tells_the_largest_loss_and_no_accuracy() -> None:
    plan = toy_plan(SPEC)
    owns = frozenset({HEAD, METRICS, TRAIN_LOSS})
    nothing = replace(NOTHING_TRAINED, deltas={HEAD: np.zeros(4, np.float32)})
    parts = inputs_of(plan, WORK, STATE, nothing, owns, None, declared=SIZELESS, entropy=bytes)
    found = {part.block_id: np.frombuffer(part.values, "<f4").tolist() for part in parts}
    assert found[METRICS] == [LOSS_LIMIT, 0.0]
    assert found[TRAIN_LOSS] == [LOSS_LIMIT]
    assert found[HEAD] == [0.0] * 4


def test_noised_losses_are_in_the_units_of_the_task_too() -> None:
    privacy = CLIENT_PRIVACY.model_copy(update={"metrics": "noised"})
    plan = toy_plan(SPEC)
    task = plan.task.model_copy(update={"kind": "regression", "labels": (), "range": (-4.0, 4.0)})
    plan = plan.model_copy(update={"client_privacy": privacy, "task": task})
    assert task.loss_unit == 16.0
    noise = planned_mechanism(privacy, plan.secagg, devices=8, l2_clip_norm=1.0, z=1.0, parameters=8)
    lanes = sent(plan, 0.01, noise, HEAD, NOISED_METRICS)[NOISED_METRICS]
    weight = noise.terms.metric_weight
    near = pytest.approx
    assert lanes[2] == near(weight * (2 * 6.0 / 4 / 16.0 / LOSS_LIMIT - 1), abs=2 * noise.terms.step)
    assert lanes[3] == near(weight * (2 * 12.0 / 8 / 16.0 / LOSS_LIMIT - 1), abs=2 * noise.terms.step)
