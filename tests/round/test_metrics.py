"""What a round measures: means by public sizes, and nothing anywhere that a count could be solved from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config.rules import RULES
from fedpeft.config.task import Task
from fedpeft.entropy import os_entropy, seeded_entropy
from fedpeft.ids import BlockId
from fedpeft.ring import BlockEncoding, RingParams
from fedpeft.round.device.records import OpenRound
from fedpeft.round.metrics import (
    ACCURACY_STEPS,
    METRIC_BITS,
    METRIC_RANGES,
    METRICS,
    NOTHING_MEASURED,
    TRAIN_LOSS,
    Measured,
    evaluation_vector,
    measured_in,
    rounded_accuracy,
    task_vector,
    train_loss_vector,
)
from fedpeft.round.size_class import lower_end, share_of, size_class, upper_end
from fedpeft.round.transport import Stage
from fedpeft.secagg.masks import rounding_bits
from fedpeft.testing.fleet import enrol, fit_request, toy_task
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

TASK = Task(kind="classify", labels=("no", "yes"))
SPEC = toy_spec({"head": 4, "lora.B.t4": 4})
STATE = toy_state(SPEC)


def lanes(examples: int, *, train: bool, rule: str = "nested", held_out: int = 4) -> dict[str, np.ndarray]:
    """All that a device of so many examples puts into the sum, the deltas aside."""
    plan = toy_plan(SPEC, weight="examples", max_weight=4096)
    plan = plan.model_copy(update={"aggregate": plan.aggregate.model_copy(update={"rule": rule})})
    deltas = {name: np.full(4, 0.5, np.float32) for name in ("head", "lora.B.t4")}
    measured = (0.7 * held_out, held_out // 2, held_out)
    trainers = {f"d{i}": GivenTrainer(SPEC, deltas, examples=examples, measured=measured) for i in range(4)}
    fleet = enrol(trainers)
    (node, *_) = fleet.devices
    fleet.devices[node].handle(Stage.FIT, encode(fit_request(fleet, plan, STATE, task=toy_task(plan, train=train))))
    opened = decode(fleet.stores["d0"].values["open-round"], OpenRound)
    return {part.block_id: np.frombuffer(part.values, "<f4") for part in opened.inputs}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("rule", [name for name, traits in RULES.items() if not traits.individual])
def test_no_lane_of_a_sum_holds_a_count(rule: str, train: bool) -> None:
    """Within a class, nothing that a device adds moves with its number of examples, trained on or held out."""
    base = lanes(96, train=train, rule=rule)
    for examples, held_out in ((91, 4), (96, 14), (181, 40), (100, 6)):
        other = lanes(examples, train=train, rule=rule, held_out=held_out)
        assert other.keys() == base.keys()
        for name, vector in other.items():
            np.testing.assert_allclose(vector, base[name], rtol=1e-6, err_msg=f"{name} tells a count")


def test_a_class_is_the_nearest_power_of_two_in_the_logarithm() -> None:
    for examples in range(1, 5000):
        declared = size_class(examples)
        assert lower_end(declared) <= examples < upper_end(declared)
        assert declared == round(math.log2(examples))
    assert size_class(0) == 0


@given(st.integers(0, 2**40), st.integers(1, 2**40))
def test_a_share_is_a_power_of_two_and_at_most_one(examples: int, cap: int) -> None:
    share = share_of(size_class(examples), cap)
    assert 0.0 < share <= 1.0
    assert math.frexp(share)[0] == 0.5
    assert share_of(size_class(max(examples, cap)), cap) == 1.0


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_accuracy_tells_no_denominator(count: int, part: float) -> None:
    correct = int(part * count)
    rounded = rounded_accuracy(correct, count, os_entropy)
    assert (ACCURACY_STEPS * rounded).is_integer()
    assert 0.0 <= rounded <= 1.0
    assert abs(rounded - correct / count) < 1 / ACCURACY_STEPS


def test_the_rounding_of_an_accuracy_is_right_on_average() -> None:
    draw = seeded_entropy(0, "accuracy")
    found = [rounded_accuracy(5, 7, draw) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(5 / 7, abs=4 * 0.5 / ACCURACY_STEPS / math.sqrt(4000))


@pytest.mark.parametrize(("devices", "bound"), [(3, 0.03), (8, 0.025), (20, 0.02), (100, 0.012)])
def test_the_reported_accuracy_is_near_the_share_of_all_examples(devices: int, bound: float) -> None:
    """Devices whose sizes spread by a factor of e and whose accuracies differ: root mean square over 200 rounds."""
    draw, entropy = np.random.default_rng(devices), seeded_entropy(1, "devices", devices)
    errors = []
    for _ in range(200):
        counts = np.maximum(2, np.exp(draw.normal(4.0, 1.0, devices)).astype(int))
        correct = draw.binomial(counts, np.clip(draw.normal(0.8, 0.05, devices), 0, 1))
        shares = [share_of(size_class(int(count)), 10_000) for count in counts]
        vectors = [
            evaluation_vector(share, loss_sum=0.3 * n, correct=int(c), count=int(n), entropy=entropy)
            for share, n, c in zip(shares, counts, correct, strict=True)
        ]
        summed = {METRICS: np.sum(vectors, axis=0, dtype=np.float64)}
        measured = measured_in(summed, {METRICS: sum(shares)}, evaluators=devices, trained=False, task=TASK)
        assert measured.accuracy is not None
        errors.append(measured.accuracy - correct.sum() / counts.sum())
    assert math.sqrt(np.mean(np.square(errors))) < bound


def test_means_are_over_public_shares_and_absent_ones_are_none() -> None:
    sums = {METRICS: np.array([3.0, 1.5]), TRAIN_LOSS: np.array([6.0])}
    measured = measured_in(sums, {METRICS: 2.0, TRAIN_LOSS: 4.0}, evaluators=5, trained=True, task=TASK)
    assert (measured.loss, measured.accuracy, measured.train_loss, measured.evaluators) == (1.5, 0.75, 1.5, 5)
    masked = measured_in({TRAIN_LOSS: np.array([6.0])}, {TRAIN_LOSS: 4.0}, evaluators=0, trained=False, task=TASK)
    assert (masked.loss, masked.accuracy, masked.train_loss, masked.evaluators) == (None, None, None, 0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e30])
def test_a_loss_beyond_all_bounds_counts_as_the_largest(loss: float) -> None:
    assert evaluation_vector(0.5, loss_sum=loss, correct=1, count=2, entropy=os_entropy)[0] == 4.0
    assert train_loss_vector(0.5, loss_sum=loss, count=2).tolist() == [4.0]


def test_nothing_evaluated_is_the_largest_loss_and_no_accuracy() -> None:
    assert evaluation_vector(0.5, loss_sum=0.0, correct=0, count=0, entropy=os_entropy).tolist() == [4.0, 0.0]
    assert train_loss_vector(1.0, loss_sum=0.0, count=0).tolist() == [8.0]


@pytest.mark.parametrize("devices", [3, 100, 2048])
def test_the_ring_holds_the_largest_means_of_so_many_devices(devices: int) -> None:
    encoding = BlockEncoding(params=RingParams(bits=METRIC_BITS, addends=devices), ranges=METRIC_RANGES)
    largest = evaluation_vector(1.0, loss_sum=1e9, correct=4, count=4, entropy=os_entropy)
    words = encoding.encode(largest, rounding_bits(bytes(32))) * np.uint64(devices)
    np.testing.assert_allclose(encoding.decode(words, devices), devices * largest.astype(np.float64), rtol=1e-7)


def test_an_absent_block_is_no_block(tmp_path: object) -> None:
    """A device without held-out examples says so by not owning the block: its zeros would be an accuracy."""
    assert METRICS not in lanes(96, train=True, held_out=0)
    assert BlockId("train-loss") in lanes(96, train=True, held_out=0)


def test_a_round_that_measures_nothing_has_no_evaluator_and_no_mean() -> None:
    assert (
        Measured(evaluators=0, loss=None, accuracy=None, train_loss=None, metrics={}, rate_losses=())
        == NOTHING_MEASURED
    )


def test_counted_lanes_of_a_task_tell_no_denominator() -> None:
    """A share of 7 examples would be solved for: what is sent is a multiple of a public step, right on average."""
    measure = TASK.measure
    assert measure is not None
    kinds = measure.lanes
    steps = np.concatenate([np.full(lanes.number, lanes.steps) for lanes in kinds])
    assert (steps > 0).any()
    means = np.concatenate([np.full(lanes.number, min(3 / 7, lanes.most)) for lanes in kinds])
    drawn = np.array([task_vector(1.0, means, measure, os_entropy) for _ in range(400)], np.float64)
    counted = drawn[:, steps > 0] * steps[steps > 0]
    assert np.abs(counted - np.rint(counted)).max() < 1e-4
    assert np.abs(means[steps > 0] * steps[steps > 0] - np.rint(means[steps > 0] * steps[steps > 0])).max() > 0.01
    assert np.abs(drawn.mean(axis=0) - means)[steps > 0].max() < 5 * 0.5 / np.sqrt(400) / steps[steps > 0].min()
