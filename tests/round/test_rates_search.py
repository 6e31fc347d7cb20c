"""How a run measures its learning rate: which rounds do what, what is chosen of the losses, what a device refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.adapter import AdapterSpec
from fedpeft.config.model import AdaLora, Adapter, Aggregate, Lora, Train
from fedpeft.config.privacy import Privacy
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.privacy import LOSS_LIMIT
from fedpeft.round.plan import ExampleTerms, LearningPlan, PlannedRounds
from fedpeft.round.rates import learning_rates, rates_told
from fedpeft.round.rates.search import (
    LEAST,
    MOST,
    MULTIPLES,
    RATE_PROBES,
    follows_search,
    local_steps,
    probe_states,
    probe_vector,
    probes_rate,
    scale_of_losses,
    why_not_measured,
)
from fedpeft.round.ring_range import largest_delta
from fedpeft.round.terms import participants_of, round_terms
from fedpeft.round.work import accept_work, work_terms
from fedpeft.testing.fleet import enrol
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state

SPEC = toy_spec({"head": 4, "lora.B.t4": 6})
HEAD, LORA = BlockId("head"), BlockId("lora.B.t4")
Losses = st.lists(st.floats(0.0, LOSS_LIMIT), min_size=len(MULTIPLES), max_size=len(MULTIPLES))


def plan_of(**changes: object) -> LearningPlan:
    """A run that measures, of ten rounds of four steps."""
    train = Train(local_steps=4, batch_size=8, learning_rate="measured")
    known = {
        "train": train,
        "rounds": PlannedRounds(count=10, eval_examples=0),
        "adapter": Adapter.having(Lora(rank=4)),
    }
    return toy_plan(SPEC).model_copy(update={**known, **changes})


PLAN = plan_of()


def kinds(plan: LearningPlan, adapter: AdapterSpec = SPEC) -> str:
    """A letter a round: one step, probes, follows, or neither."""
    found = ""
    for round_id in range(1, plan.rounds.count + 2):
        one, probes = local_steps(plan, adapter, round_id) == 1, probes_rate(plan, adapter, round_id)
        found += "1" if one else "p" if probes else "f" if follows_search(plan, adapter, round_id) else "."
    return found


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (Adapter.having(Lora(rank=4)), "1pffffffff."),
        (Adapter.having(Lora(rank=4), head_start="class-means"), ".1pfffffff."),
        (Adapter.having(Lora(rank=4), head_start="class-means", head_refresh=3), ".1p.ff.ff.."),
        (Adapter.having(Lora(rank=4), head_start="class-means", head_refresh=2), ".1.p.f.f.f."),
        (Adapter.having(Lora(rank=4, start="gradient")), ".1pfffffff."),
    ],
)
def test_the_first_round_that_trains_takes_one_step_and_the_next_one_probes(adapter: Adapter, expected: str) -> None:
    assert kinds(plan_of(adapter=adapter)) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": Train(learning_rate="measured", optimizer="sgd")}, "AdamW"),
        ({"aggregate": Aggregate(server_optimizer="momentum")}, "server optimizer"),
        ({"aggregate": Aggregate(a_round_every=2)}, "rounds of A"),
        ({"aggregate": Aggregate(rule="rolora")}, "rolora"),
        ({"aggregate": Aggregate(local=("head",))}, "stay on the device"),
        ({"rounds": PlannedRounds(count=2, eval_examples=0)}, "fewer than three"),
        ({"start": 64 * "a"}, "trained before"),
        ({"client_privacy": Privacy(unit="client", epsilon=1.0)}, "privacy"),
        (
            {"privacy": ExampleTerms(epsilon=1.0, delta=1e-5, l2_clip_norm=1.0, noise_multiplier=None, steps=9)},
            "privacy",
        ),
        ({"adapter": Adapter.having(Lora(rank=4), AdaLora())}, "decides between rounds"),
    ],
)
def test_a_run_that_cannot_measure_has_the_tables_rates_and_says_why(changes: dict[str, object], reason: str) -> None:
    plan = plan_of(**changes)
    assert reason in why_not_measured(plan, SPEC)
    assert set(kinds(plan)) == {"."}
    assert f"not measured: {why_not_measured(plan, SPEC)}" in rates_told(plan, SPEC)


def test_a_rate_that_is_given_or_the_tables_is_not_measured() -> None:
    for rate in ("auto", 0.1):
        plan = plan_of(train=Train(learning_rate=rate, local_steps=4))
        assert set(kinds(plan)) == {"."}
        assert "measure" not in rates_told(plan, SPEC)


def test_the_scale_multiplies_the_tables_rates_and_neither_the_heads_nor_one_that_was_set() -> None:
    table = learning_rates(PLAN, SPEC, [HEAD, LORA])
    scaled = learning_rates(PLAN, SPEC, [HEAD, LORA], scale=3.0)
    assert scaled == {HEAD: table[HEAD], LORA: pytest.approx(3 * table[LORA])}
    own = plan_of(adapter=Adapter.having(Lora(rank=4, learning_rate=0.25)))
    assert learning_rates(own, SPEC, [LORA], scale=3.0) == {LORA: 0.25}


@given(Losses)
def test_what_is_chosen_is_within_its_limits(losses: list[float]) -> None:
    assert LEAST <= scale_of_losses(losses) <= MOST


@given(st.floats(-2.0, 4.0), st.floats(0.01, 1.0))
def test_the_root_of_a_parabolas_lowest_point_is_chosen(lowest: float, curve: float) -> None:
    """Multiples are powers of three; a parabola over the power is met to the last bit, but for its cut ends."""
    losses = [1.0 + curve * (power - lowest) ** 2 for power in range(-2, 5)]
    place = min(range(7), key=lambda index: losses[index])
    expected = 3.0 ** (lowest / 2) if 0 < place < 6 else math.sqrt(MULTIPLES[place])
    assert scale_of_losses(losses) == pytest.approx(expected, rel=1e-6)


def test_a_probe_lies_on_the_line_through_the_first_state_and_the_received_one_and_leaves_the_head() -> None:
    first = toy_state(SPEC)
    received = first.replace({name: first[name] + np.float32(0.5) for name in (HEAD, LORA)})
    for multiple, moved in zip(MULTIPLES, probe_states(first, received), strict=True):
        assert np.allclose(moved[LORA], first[LORA] + 0.5 * multiple, rtol=1e-6)
        assert np.array_equal(moved[HEAD], received[HEAD])


@pytest.mark.parametrize("losses", [None, np.full(7, np.nan), np.full(3, 1.0), np.full(7, np.inf)])
def test_a_device_that_measured_nothing_adds_the_same_to_every_lane(losses: np.ndarray | None) -> None:
    assert np.array_equal(probe_vector(0.5, losses), np.full(7, 0.5 * LOSS_LIMIT, np.float32))


def test_the_range_of_a_round_fits_the_largest_rate_that_may_be_measured() -> None:
    """One step, then the table's four, then four at nine times the table's rate: margin and powers of two beside."""
    rate = learning_rates(PLAN, SPEC, [LORA])[LORA]
    for round_id, longest in ((1, rate), (2, 4 * rate), (3, 4 * MOST * rate)):
        found = largest_delta(PLAN, SPEC, LORA, round_id=round_id)
        assert found is not None
        assert 2 * longest <= found * (1 + 1e-6) or found == 4.0
        assert found < 4 * longest * (1 + 1e-6)


def test_only_the_round_that_probes_has_its_lanes() -> None:
    for round_id in (1, 2, 3):
        work = work_terms(PLAN, SPEC, round_id, state=bytes(32))
        terms = round_terms(PLAN, SPEC, (), work, round_id=round_id, attempt=1, stage_deadline_s=1.0, history=bytes(32))
        lanes = [block.length for block in terms.blocks if block.block_id == RATE_PROBES]
        assert lanes == ([len(MULTIPLES)] if round_id == 2 else [])


@pytest.mark.parametrize(
    ("round_id", "scale", "taken"),
    [
        (3, 0.0, True),
        (3, 1.0, True),
        (3, MOST, True),
        (3, LEAST, True),
        (3, math.nextafter(MOST, 99), False),
        (3, 0.1, False),
        (3, -1.0, False),
        (3, math.inf, False),
        (3, math.nan, False),
        (2, 1.0, False),
        (1, 2.0, False),
        (11, 2.0, False),
    ],
)
def test_a_device_takes_no_scale_out_of_its_limits_or_before_its_time(round_id: int, scale: float, taken: bool) -> None:
    work = replace(work_terms(PLAN, SPEC, round_id, state=bytes(32)), learning_rate_scale=scale)
    if taken:
        accepted = accept_work(PLAN, SPEC, round_id, work, bucket=0, controls=())
        assert accepted.learning_rate_scale == scale
        return
    with pytest.raises(SpecMismatch, match="learning_rate_scale"):
        accept_work(PLAN, SPEC, round_id, work, bucket=0, controls=())


def test_a_device_takes_no_scale_in_a_run_that_does_not_measure() -> None:
    plan = plan_of(train=Train(learning_rate="auto", local_steps=4))
    work = replace(work_terms(plan, SPEC, 5, state=bytes(32)), learning_rate_scale=2.0)
    with pytest.raises(SpecMismatch, match="learning_rate_scale"):
        accept_work(plan, SPEC, 5, work, bucket=0, controls=())


def test_the_probes_of_the_rate_stand_before_the_loss_of_training_and_behind_all_metrics() -> None:
    """The order of lanes is part of what is signed: another coordinator must come to the same."""
    spec = round_terms(
        PLAN,
        SPEC,
        participants_of(enrol({f"d{i}": GivenTrainer(SPEC, {}) for i in range(3)}).members()),
        work_terms(PLAN, SPEC, 2, state=b""),
        round_id=2,
        attempt=1,
        stage_deadline_s=1.0,
        history=b"",
    )
    own = {block.block_id for block in SPEC.blocks}
    lanes = [block.block_id for block in spec.blocks if block.block_id not in own]
    assert lanes == ["metrics", "task-metrics", "rate-probes", "train-loss"]


def test_three_rounds_that_train_are_enough_to_measure_and_two_are_not() -> None:
    for count, measured in ((3, True), (2, False)):
        plan = plan_of(rounds=PlannedRounds(count=count, eval_examples=0))
        assert (why_not_measured(plan, SPEC) == "") is measured
