"""Noised metrics: what a client adds, what the sum tells, what it costs, and a whole run with them."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config import parse
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import BlockId
from fedpeft.privacy import (
    CLIP_BIT,
    METRIC_LANES,
    NOISED_METRICS,
    Mechanism,
    bit_vector,
    bit_weight,
    clip,
    decode_sum,
    metric_lanes,
    metric_noise,
    metric_weight,
    noisy_words,
    read_lanes,
    size_mechanism,
)
from fedpeft.privacy.noised_metrics import LOSS_LIMIT
from fedpeft.round.device.records import OpenRound
from fedpeft.round.plan import PlannedRounds
from fedpeft.round.work import work_terms
from fedpeft.testing.fleet import CLIENT_PRIVACY
from fedpeft.testing.trainers import toy_plan, toy_spec
from fedpeft.wire import decode
from fedpeft_server.run.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).parent))
from private_world import BITFIT, HEAD, SOURCE, World

DELTAS = BlockId("deltas")
NOISED = ('privacy.metrics="noised"', "privacy.noise_multiplier=0.7", "privacy.epsilon=60.0")


def made_for(clip_norm: float = 1.0, *, devices: int = 20, bits: int = 32) -> Mechanism:
    return size_mechanism(
        l2_clip_norm=clip_norm,
        noise_multiplier=1.0,
        colluders=1,
        devices=devices,
        threshold=devices - 2,
        bits=bits,
        parameters=8 + 1 + METRIC_LANES,
        bit_weight=bit_weight(clip_norm, 1.0, devices),
        metric_weight=metric_weight(clip_norm),
    )


@given(
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e3),
    st.floats(0.01, 100),
    st.floats(0, 1),
    st.floats(0, 1e6),
    st.sampled_from([16, 32]),
)
def test_one_client_moves_the_sum_by_at_most_the_sensitivity(
    seed: int, clip_norm: float, length: float, accuracy: float, loss: float, bits: int
) -> None:
    """Deltas, bit and metrics together, on the grid, in integers, whatever was measured."""
    made = made_for(clip_norm, bits=bits)
    vector = np.random.default_rng(seed).standard_normal(8)
    vector = (vector * length * clip_norm / np.linalg.norm(vector)).astype(np.float32)
    clipped = clip({DELTAS: vector}, l2_clip_norm=clip_norm, allowance=made.allowance)
    terms = made.terms
    lanes = metric_lanes(accuracy=accuracy, loss=loss, train_loss=loss, weight=terms.metric_weight, step=terms.step)
    assert np.abs(lanes).max() <= terms.metric_weight
    inputs = {
        **clipped.vectors,
        CLIP_BIT: bit_vector(clipped.scale == 1.0, terms.bit_weight),
        NOISED_METRICS: lanes,
    }
    on_grid = np.concatenate([np.rint(each.astype(np.float64) / terms.step) for each in inputs.values()])
    assert np.linalg.norm(on_grid) * terms.step <= terms.sensitivity
    noisy_words(inputs, made, os_entropy)  # nor does the product refuse it


@given(st.floats(1e-3, 1e3))
def test_the_metrics_make_the_noise_on_the_deltas_at_most_three_percent_larger(clip_norm: float) -> None:
    weight = metric_weight(clip_norm)
    assert 1.02 < math.hypot(clip_norm, 2 * weight) / clip_norm < 1.0308
    assert math.ldexp(weight, 4 - math.frexp(weight)[1]).is_integer()


def lanes_of(*devices: tuple[float | None, float | None, float], weight: float = 0.125) -> np.ndarray:
    step = 2.0**-24
    return sum(
        metric_lanes(accuracy=accuracy, loss=loss, train_loss=train, weight=weight, step=step).astype(np.float64)
        for accuracy, loss, train in devices
    )


def test_without_noise_the_sum_tells_the_means_of_those_who_measured() -> None:
    found = read_lanes(lanes_of((0.5, 2.0, 1.0), (0.9, 1.0, 3.0), (None, None, 2.0)), weight=0.125, survivors=3)
    assert found.accuracy == pytest.approx(0.7, abs=1e-5)
    assert found.loss == pytest.approx(1.5, abs=1e-4)
    assert found.train_loss == pytest.approx(2.0, abs=1e-4)


def test_nobody_who_measured_and_losses_beyond_the_limit() -> None:
    nobody = read_lanes(lanes_of((None, None, 1e9), (None, None, 1e9)), weight=0.125, survivors=2)
    assert (nobody.accuracy, nobody.loss, nobody.train_loss) == (None, None, LOSS_LIMIT)


def test_noise_on_the_accuracy_is_as_stated() -> None:
    """600 sums of 20 devices at the least noise: the threshold's shares, without the colluder's."""
    made = made_for()
    terms, found = made.terms, []
    for _ in range(600):
        total = np.zeros(METRIC_LANES, np.uint32)
        for device in range(20):
            lanes = metric_lanes(accuracy=0.6, loss=2.0, train_loss=1.0, weight=terms.metric_weight, step=terms.step)
            if device < made.shares:
                total += noisy_words({NOISED_METRICS: lanes}, made, os_entropy)[NOISED_METRICS]
            else:
                total += np.rint(lanes / terms.step).astype(np.int64).astype(np.uint32)
        lanes_sum = decode_sum(total, terms.step)
        found.append(lanes_sum[1] / terms.metric_weight / 20)
    stated = metric_noise(terms.metric_weight, terms.noise_multiplier * terms.sensitivity, 20)
    assert np.std(found) / 2 == pytest.approx(stated, rel=0.15)  # 5 standard deviations of an estimate from 600
    assert np.mean(found) == pytest.approx(0.2, abs=5 * 2 * stated / math.sqrt(600))


def test_a_run_with_noised_metrics_tells_them_and_charges_for_their_lanes(tmp_path: Path) -> None:
    world = World(tmp_path, *NOISED)
    world.train()
    assert world.path is not None
    with RunDirectory.open(world.path) as run:
        rows = run.rounds
        commit = run.last_commit()
    for row in rows:
        assert row.train_loss is not None
        assert 0 <= row.train_loss <= LOSS_LIMIT
    assert commit is not None
    assert commit.server_state["best_loss"] is None, "no best state is picked by luck"
    with world.ledger() as ledger:
        assert {entry.release.parameters for entry in ledger.entries} == {64 + METRIC_LANES}
    for store in world.fleet.stores.values():
        opened = decode(store.values["open-round"], OpenRound)
        assert {part.block_id for part in opened.inputs} == {HEAD, BITFIT, NOISED_METRICS}


def test_metrics_that_would_drown_are_refused_before_the_first_round(tmp_path: Path) -> None:
    world = World(tmp_path, *NOISED[:1], "privacy.noise_multiplier=8.0")
    with pytest.raises(ConfigInvalid) as refused:
        world.train()
    assert "devices a round for noised metrics" in str(refused.value.problems[0])


def test_noised_metrics_need_a_sum_with_noise() -> None:
    source = SOURCE.replace('unit = "client"', 'unit = "example"\nmetrics = "noised"')
    with pytest.raises(ConfigInvalid) as refused:
        parse(source, source="run.toml", simulation=True)
    assert "privacy.metrics" in str(refused.value)


@pytest.mark.parametrize(("metrics", "examples"), [("noised", 7), ("suppressed", 1)])
def test_noised_metrics_are_of_as_many_examples_as_the_run_says(metrics: str, examples: int) -> None:
    """Without them nothing that is evaluated leaves a device, and one example is the least there is."""
    spec = toy_spec({"head": 4})
    rounds = PlannedRounds(count=9, eval_examples=7)
    privacy = CLIENT_PRIVACY.model_copy(update={"metrics": metrics})
    plan = toy_plan(spec).model_copy(update={"client_privacy": privacy, "rounds": rounds})
    assert work_terms(plan, spec, 1, state=bytes(32)).eval_examples == examples


@pytest.mark.parametrize(("accuracy", "loss"), [(None, None), (0.75, None), (None, 2.0)])
def test_a_device_with_half_a_measurement_has_none(accuracy: float | None, loss: float | None) -> None:
    lanes = metric_lanes(accuracy=accuracy, loss=loss, train_loss=LOSS_LIMIT / 2, weight=0.25, step=2.0**-10)
    assert lanes.tolist() == [-0.25, 0.0, 0.0, 0.0]
