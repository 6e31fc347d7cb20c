"""The range of each block follows from the plan, is never below what AdamW can do, and decides where two bytes fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.config.model import Adapter, Lora, SecureAggregation
from fedpeft.ids import BlockId
from fedpeft.round.plan import LearningPlan
from fedpeft.round.ring_range import (
    CEILING,
    FIRST_DECAY,
    SECOND_DECAY,
    adamw_reach,
    largest_delta,
    ring_range,
)
from fedpeft.testing.trainers import toy_plan, toy_spec

SPEC = toy_spec({"head": 4, "lora.B.t4": 6})
HEAD, LORA = BlockId("head"), BlockId("lora.B.t4")
AUTO = SecureAggregation(bits="auto")


def plan(
    secagg: SecureAggregation = AUTO, rule: str = "nested", weight: str = "uniform", **train: object
) -> LearningPlan:
    made = toy_plan(SPEC, secagg=secagg)
    aggregate = made.aggregate.model_copy(update={"rule": rule, "weight": weight})
    return made.model_copy(update={"train": made.train.model_copy(update=train), "aggregate": aggregate})


def adamw_path(gradients: np.ndarray, *, rate: float, decay: float = 0.0) -> tuple[float, float]:
    """How far AdamW leads from 1.0, and its last step."""
    value, first, second, step_length = 1.0, 0.0, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        value *= 1 - rate * decay
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step_length = rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        value -= step_length
    return abs(value - 1.0), abs(step_length)


@settings(max_examples=30)
@given(
    gradients=st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=40),
    rate=st.floats(1e-5, 0.3),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_no_steps_of_adamw_lead_out_of_the_range(gradients: list[float], rate: float, decay: float) -> None:
    moved, _ = adamw_path(np.array(gradients), rate=rate, decay=decay)
    found = largest_delta(plan(learning_rate=rate, local_steps=len(gradients)), SPEC, HEAD, round_id=1)
    assert found is not None
    assert moved <= found
    assert found in (CEILING, 2.0 ** np.rint(np.log2(found)))


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_the_gradients_that_go_furthest_stay_in_range(steps: int) -> None:
    """The last step is longest when gradient k is in proportion to the weight of k in the mean over that in the
    squares: each gradient 1.11 times the one before. Long rounds of those were cut when ranges were twice the rates.
    """
    moved, last = adamw_path(np.power(0.999 / 0.9, np.arange(steps)), rate=1.0)
    assert moved <= adamw_reach(steps)
    assert last >= 0.999 * (adamw_reach(steps) - adamw_reach(steps - 1)), "the bound of a step is attained"


def test_torchs_optimizer_has_the_decays_that_the_ranges_rest_on() -> None:
    torch = pytest.importorskip("torch")
    defaults = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    assert defaults["betas"] == (FIRST_DECAY, SECOND_DECAY)
    assert not defaults["amsgrad"]


def test_the_range_follows_the_schedule_and_the_number_of_steps() -> None:
    decaying = plan(decay="linear")
    assert largest_delta(decaying, SPEC, LORA, round_id=1) == 1.0  # twice four steps of 0.1, the next power of two
    assert largest_delta(decaying, SPEC, LORA, round_id=60) == 0.5
    assert largest_delta(plan(local_steps=400), SPEC, LORA, round_id=1) == CEILING
    assert largest_delta(plan(learning_rate=1e-12), SPEC, LORA, round_id=1) == 2.0**-24


@pytest.mark.parametrize(("rule", "optimizer"), [("nested", "sgd"), ("hetlora", "adamw"), ("fedrot", "adamw")])
def test_what_no_rate_bounds_has_the_wide_range_and_the_wide_ring(rule: str, optimizer: str) -> None:
    """SGD's steps are as long as gradients; values that a device sends or turns are as long as the state."""
    found = ring_range(plan(rule=rule, optimizer=optimizer), SPEC, LORA, round_id=1, devices=6)
    assert (found.max_abs, found.bits) == (CEILING, 32)


def test_a_method_that_writes_its_own_values_has_the_wide_ring() -> None:
    spec = toy_spec({"adalora.score": 4})
    assert largest_delta(plan(), spec, BlockId("adalora.score"), round_id=1) is None


@pytest.mark.parametrize(("devices", "bits"), [(6, 16), (128, 16), (129, 32), (1000, 32)])
def test_two_bytes_are_taken_where_a_value_keeps_eight_bits(devices: int, bits: int) -> None:
    assert ring_range(plan(), SPEC, LORA, round_id=1, devices=devices).bits == bits


def test_a_device_that_is_weighed_has_the_wide_ring() -> None:
    """Its delta times a share of 1/512 would be less than one level of the narrow one."""
    assert ring_range(plan(weight="examples"), SPEC, LORA, round_id=1, devices=6).bits == 32


@pytest.mark.parametrize("given_range", [0.25, 4.0])
def test_a_range_that_is_given_is_used_and_is_narrow_only_within_what_the_rates_say(given_range: float) -> None:
    found = ring_range(plan(SecureAggregation(bits="auto", max_abs=given_range)), SPEC, LORA, round_id=1, devices=6)
    assert found.max_abs == given_range
    assert found.bits == (16 if given_range <= 1.0 else 32)


def test_a_ring_that_is_given_is_used() -> None:
    for bits in (16, 32):
        chosen = SecureAggregation(bits=bits)
        assert ring_range(plan(chosen), SPEC, LORA, round_id=1, devices=6).bits == bits


def test_both_sides_have_the_same_range_for_a_method_of_its_own_rate() -> None:
    made = plan().model_copy(update={"adapter": Adapter.having(Lora(rank=4, learning_rate=0.4))})
    assert largest_delta(made, SPEC, LORA, round_id=1) == CEILING
    assert largest_delta(made, SPEC, HEAD, round_id=1) == 1.0


def test_a_sketch_of_gradients_is_as_long_as_gradients_are() -> None:
    """Round 1 of a gradient start sums no change, so no rate bounds it; the rounds after it train."""
    sketching = plan().model_copy(update={"adapter": Adapter.having(Lora(rank=4, start="gradient"))})
    assert ring_range(sketching, SPEC, LORA, round_id=1, devices=6).bits == 32
    assert ring_range(sketching, SPEC, LORA, round_id=2, devices=6).bits == 16


def test_work_that_comes_late_has_the_range_of_the_round_that_it_was_trained_in() -> None:
    """Under a decay the range of a late round would cut what an earlier one has trained, at any weight below a half."""
    plain = plan(decay="cosine")
    plain = plain.model_copy(update={"rounds": plain.rounds.model_copy(update={"count": 20})})
    late = plain.model_copy(update={"rounds": plain.rounds.model_copy(update={"max_staleness": 5})})
    alone = [largest_delta(plain, SPEC, LORA, round_id=number) for number in range(1, 21)]
    assert alone[19] is not None
    assert alone[14] is not None
    assert alone[19] < alone[14] / 2
    for number in range(1, 21):
        assert largest_delta(late, SPEC, LORA, round_id=number) == max(alone[max(0, number - 6) : number])


def test_a_block_of_a_method_that_is_no_method_of_ours_has_the_wide_range() -> None:
    """One of a plug-in that is not here, or a name that somebody made up."""
    odd = toy_spec({"head": 4, "made-up.t4": 6})
    assert largest_delta(plan(), odd, BlockId("made-up.t4"), round_id=1) is None
    assert largest_delta(plan(), odd, HEAD, round_id=1) is not None
