"""The learning plan: strict JSON there and back, and the schedule over rounds."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpeft.config import parse
from fedpeft.config.model import Privacy, Rounds, Train
from fedpeft.errors import ResourceMissing, SpecMismatch
from fedpeft.round.plan import ExampleTerms, LearningPlan, example_terms, learning_rate_factor
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import toy_plan, toy_spec

PLAN = toy_plan(toy_spec({"head": 4}))


def test_a_plan_survives_its_json_byte_for_byte() -> None:
    again = LearningPlan.from_json(PLAN.to_json())
    assert again == PLAN
    assert again.to_json() == PLAN.to_json()


def test_a_plan_by_clients_does_not_say_whose_hooks_take_gradients_of_examples() -> None:
    plan = PLAN.model_copy(update={"client_privacy": Privacy(unit="client", epsilon=1.0, delta=0.01)})
    assert '"engine"' not in plan.to_json()
    assert LearningPlan.from_json(plan.to_json()) == plan
    with pytest.raises(SpecMismatch, match="one spelling"):
        LearningPlan.from_json(plan.to_json().replace('"unit":"client"', '"unit":"client","engine":"auto"'))


@pytest.mark.parametrize(
    "change",
    [
        {"code": "import os"},
        {"seed": "0"},
        {"seed": -1.5},
        {"task": {"kind": "paint"}},
        {"train": {"learning_rate": 0}},
        {"train": {"learning_rate": "inf"}},
        {"adapter": {"lora": {"rank": 0}}},
    ],
)
def test_a_plan_with_anything_else_in_it_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecMismatch, match="this version of fedpeft"):
        LearningPlan.from_json(json.dumps(json.loads(PLAN.to_json()) | change))


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "\0", PLAN.to_json()[:-1]])
def test_what_is_no_plan_at_all_is_refused(text: str) -> None:
    with pytest.raises(SpecMismatch):
        LearningPlan.from_json(text)


@pytest.mark.parametrize(
    ("privacy", "unit", "each"),
    [
        ({"unit": "example", "epsilon": 2.0, "delta": 1e-3}, "example", 1),
        ({"unit": "person", "epsilon": 2.0, "delta": 1e-3, "examples_per_person": 7}, "person", 7),
        ({"unit": "client", "epsilon": 2.0, "delta": 1e-3}, None, 0),
        ({"unit": "none"}, None, 0),
    ],
)
def test_a_plan_that_hides_examples_or_people_says_how_many_of_each_a_step_looks_at(
    privacy: dict[str, object], unit: str | None, each: int
) -> None:
    config = parse(toy_run("", clients=3), source="run.toml", simulation=True)
    found = example_terms(config.model_copy(update={"privacy": Privacy.model_validate(privacy)}))
    if unit is None:
        assert found is None
        return
    assert found is not None
    assert (found.unit, found.examples_per_person, found.epsilon, found.delta) == (unit, each, 2.0, 1e-3)
    assert found.steps == config.rounds.count * config.train.local_steps


def factors(count: int, **train: object) -> list[float]:
    plan, rounds = Train.model_validate(train), Rounds(count=count)
    return [learning_rate_factor(plan, rounds, round_id) for round_id in range(1, count + 1)]


def test_the_schedule_by_hand() -> None:
    assert factors(4) == [1.0, 1.0, 1.0, 1.0]
    assert factors(4, decay="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(5, decay="linear", warmup_rounds=1) == [0.5, 1.0, 0.75, 0.5, 0.25]
    assert factors(2, decay="cosine") == [1.0, 0.5]
    assert factors(3, warmup_rounds=3) == [0.25, 0.5, 0.75]


@given(
    st.integers(1, 60),
    st.integers(0, 70),
    st.sampled_from(["constant", "linear", "cosine"]),
)
def test_the_schedule_rises_then_never_rises_again_and_every_round_learns(count: int, warmup: int, decay: str) -> None:
    values = factors(count, warmup_rounds=warmup, decay=decay)
    assert all(0 < value <= 1 for value in values)
    assert all(a < b for a, b in pairwise(values[:warmup]))
    assert all(a >= b for a, b in pairwise(values[warmup:]))


def test_a_plan_of_a_plug_in_that_is_not_here_names_what_to_install() -> None:
    gone = PLAN.model_copy(update={"plugins": {"method gone": "gone-lab 1.0"}})
    with pytest.raises(ResourceMissing, match=r"gone-lab 1\.0"):
        LearningPlan.from_json(gone.to_json())


@pytest.mark.parametrize(("people", "taken"), [(0, False), (1, True), (4096, True), (4097, False)])
def test_a_step_looks_at_1_to_4096_examples_of_a_person_and_at_one_if_nothing_is_said(people: int, taken: bool) -> None:
    given = {"epsilon": 1.0, "delta": 1e-5, "l2_clip_norm": 1.0, "noise_multiplier": 1.0, "steps": 9}
    assert ExampleTerms.model_validate(given).examples_per_person == 1
    if taken:
        assert ExampleTerms.model_validate(given | {"examples_per_person": people}).examples_per_person == people
    else:
        with pytest.raises(ValidationError):
            ExampleTerms.model_validate(given | {"examples_per_person": people})
