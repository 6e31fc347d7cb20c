"""A link's clip norm under client-level privacy: words are decoded by it, so with a larger one a step is longer.

The state would then be one that the terms which devices signed do not lead to. Devices and sums are the product's.
"""

from dataclasses import replace

import pytest

from fedpeft.aggregate import ServerState
from fedpeft.errors import SpecMismatch
from fedpeft.round.history import Past
from fedpeft.round.noise import expect_clip
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import RoundTask
from fedpeft.round.transition import is_exact, next_state
from fedpeft.testing.fleet import CLIENT_PRIVACY, enrol, toy_noise
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan
from tests.attacks.test_wrong_state import SPEC, STATE, N, Run, ready

FIXED = toy_plan(SPEC).model_copy(update={"client_privacy": CLIENT_PRIVACY})
MOVING = CLIENT_PRIVACY.model_copy(update={"clip": "adaptive", "clip_learning_rate": 1.0})
PLAIN = toy_plan(SPEC)


class PrivateRun(Run):
    """Its rounds have the noise of the plan."""

    def task(self, past: Past, attempt: int) -> RoundTask:
        noise = toy_noise(self.plan, devices=N) if self.plan.client_privacy else None
        return replace(super().task(past, attempt), noise=noise)


@pytest.mark.parametrize("clip", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(
    "plan", [FIXED, FIXED.model_copy(update={"client_privacy": MOVING})], ids=["fixed", "adaptive"]
)
def test_a_step_that_another_clip_norm_makes_longer_is_refused(plan: LearningPlan, clip: float) -> None:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})
    assert is_exact(plan, SPEC, 1)
    run = PrivateRun(fleet, plan)
    told = run.after(STATE, clip=clip).links[0]
    state, _ = next_state(plan, STATE, ServerState(), told, run.sums().sums, learning_rate_factor=1.0)
    outcome = run.asked(run.after(state, clip=clip), state, run.sums())
    assert len(ready(outcome)) == (N if clip == 1.0 else 0)


def test_a_clip_norm_of_a_run_without_noise_is_refused() -> None:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})
    run = Run(fleet, PLAIN)
    state, _ = next_state(
        PLAIN, STATE, ServerState(), run.after(STATE).links[0], run.sums().sums, learning_rate_factor=1.0
    )
    assert ready(run.asked(run.after(state, clip=1.0), state, run.sums())) == []


def test_whoever_was_in_the_round_takes_its_clip_norm_alone() -> None:
    moving = FIXED.model_copy(update={"client_privacy": MOVING})
    expect_clip(moving, 1.4, round_id=2, signed=1.4)
    with pytest.raises(SpecMismatch, match="clip norm"):
        expect_clip(moving, 1.5, round_id=2, signed=1.4)


def test_whoever_was_not_in_the_round_bounds_a_clip_norm_by_the_plan() -> None:
    moving = FIXED.model_copy(update={"client_privacy": MOVING})
    expect_clip(moving, 2.7, round_id=2, signed=None)
    for plan, norm, round_id in ((moving, 2.8, 2), (moving, 1.5, 1), (FIXED, 1.5, 9), (PLAIN, 1.0, 2)):
        with pytest.raises(SpecMismatch, match="clip norm"):
            expect_clip(plan, norm, round_id=round_id, signed=None)
