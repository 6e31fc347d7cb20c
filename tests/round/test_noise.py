"""The noise of a round follows from the plan: a device refuses any other, and an adaptive clip norm that jumps."""

import math
from dataclasses import replace

import pytest

from fedpeft.errors import SpecMismatch
from fedpeft.privacy import NoiseTerms
from fedpeft.round.noise import expect_noise, planned_mechanism
from fedpeft.round.plan import LearningPlan
from fedpeft.testing.fleet import CLIENT_PRIVACY, toy_noise
from fedpeft.testing.trainers import toy_plan, toy_spec

SPEC = toy_spec({"head": 4})
PLAN = toy_plan(SPEC).model_copy(update={"client_privacy": CLIENT_PRIVACY})
NOISE = toy_noise(PLAN, devices=5)
RATE = 0.2
ADAPTIVE = PLAN.model_copy(
    update={"client_privacy": CLIENT_PRIVACY.model_copy(update={"clip": "adaptive", "clip_learning_rate": RATE})}
)


def expected(
    plan: LearningPlan, noise: NoiseTerms | None, *, round_id: int = 1, seen: tuple[int, float] | None = None
) -> None:
    expect_noise(plan, noise, round_id=round_id, devices=5, parameters=4, seen=seen)


def at(norm: float) -> NoiseTerms:
    assert ADAPTIVE.client_privacy is not None
    made = planned_mechanism(
        ADAPTIVE.client_privacy, ADAPTIVE.secagg, devices=5, l2_clip_norm=norm, z=1.0, parameters=4
    )
    return made.terms


def test_the_planned_noise_is_accepted_in_every_round() -> None:
    for round_id in (1, 2, 99):
        expected(PLAN, NOISE, round_id=round_id)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.5},
        {"l2_clip_norm": 2.0},
        {"l2_clip_norm": 0.5},
        {"colluders": 1},
        {"step": NOISE.step / 2},
        {"bit_weight": NOISE.step},
        {"metric_weight": NOISE.step},
    ],
)
def test_noise_that_does_not_follow_from_the_plan_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(SpecMismatch, match="Expected"):
        expected(PLAN, replace(NOISE, **change))  # type: ignore[arg-type]


def test_noise_cannot_be_left_out_or_added() -> None:
    with pytest.raises(SpecMismatch, match="noise"):
        expected(PLAN, None)
    with pytest.raises(SpecMismatch, match="no noise"):
        expected(toy_plan(SPEC), NOISE)


def test_a_plan_without_a_multiplier_promises_nothing() -> None:
    vague = CLIENT_PRIVACY.model_copy(update={"noise_multiplier": None})
    with pytest.raises(SpecMismatch, match="multiplier"):
        expected(PLAN.model_copy(update={"client_privacy": vague}), NOISE)


@pytest.mark.parametrize(("round_id", "seen"), [(1, None), (4, (4, 1.0)), (5, (4, 1.0)), (6, (4, 1.0)), (4, None)])
def test_an_adaptive_clip_norm_moves_by_a_bounded_factor_a_round(round_id: int, seen: tuple[int, float] | None) -> None:
    steps = round_id - (seen[0] if seen else 1)
    for sign in (-1, 1):
        expected(ADAPTIVE, at(math.exp(sign * RATE * steps)), round_id=round_id, seen=seen)
        with pytest.raises(SpecMismatch, match="clip norm"):
            expected(ADAPTIVE, at(math.exp(sign * (RATE * steps + 0.001))), round_id=round_id, seen=seen)
