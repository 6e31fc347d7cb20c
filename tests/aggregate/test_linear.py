"""The mean: linear, convex, and exact for the product of LoRA's factors under any mix of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.aggregate import RoundSums, ServerState, optimized
from fedpeft.aggregate.linear import mean as mean_of
from fedpeft.config.aggregate import Aggregate
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId
from fedpeft.testing.trainers import FROZEN, toy_spec, toy_state

SPEC = toy_spec({"head": 4, "bitfit": 2})
STATE = toy_state(SPEC)
HEAD, BITFIT = BlockId("head"), BlockId("bitfit")
VECTORS = arrays.arrays(np.float64, 4, elements=st.floats(-100, 100, width=32))
WEIGHTS = st.floats(0.0625, 8, width=32)


def mean(sums: dict[BlockId, np.ndarray], weight: float, rate: float = 1.0) -> AdapterState:
    moved = mean_of(STATE, RoundSums(sums=sums, total_weight=weight, owner_weights={}))
    return optimized(Aggregate(server_learning_rate=rate), STATE, moved, ServerState())[0]


def test_the_mean_by_hand() -> None:
    total = np.array([4.0, 0.0, -2.0, 1.0])
    moved = mean({HEAD: total}, weight=4.0)
    assert moved[HEAD].tolist() == (STATE[HEAD] + np.array([1.0, 0.0, -0.5, 0.25])).tolist()
    assert mean({HEAD: total}, weight=4.0, rate=0.5)[HEAD].tolist() == (STATE[HEAD] + total / 8).tolist()


def test_blocks_without_a_sum_keep_their_bits() -> None:
    moved = mean({HEAD: np.ones(4)}, weight=1.0)
    assert moved.digests[FROZEN] == STATE.digests[FROZEN]
    assert moved.digests[BITFIT] == STATE.digests[BITFIT]
    assert moved.digests[HEAD] != STATE.digests[HEAD]


def test_the_divisor_is_the_cohorts_weight_and_not_the_owners() -> None:
    """Four devices of weight one, of which one trains bitfit: it moves by a quarter of that one's delta."""
    moved = mean({HEAD: np.full(4, 4.0), BITFIT: np.ones(2)}, weight=4.0)
    np.testing.assert_array_equal(moved[BITFIT] - STATE[BITFIT], 0.25)


@given(VECTORS, VECTORS, WEIGHTS)
def test_the_step_is_linear_in_the_sum(a: np.ndarray, b: np.ndarray, weight: float) -> None:
    def step(total: np.ndarray) -> np.ndarray:
        return mean({HEAD: total}, weight)[HEAD].astype(np.float64) - STATE[HEAD]

    bound = 1e-6 * (1 + (np.abs(a) + np.abs(b)).max() / weight)
    np.testing.assert_allclose(step(a + b), step(a) + step(b), rtol=0, atol=bound)
    np.testing.assert_allclose(step(-a), -step(a), rtol=0, atol=bound)


@given(st.lists(st.tuples(VECTORS, WEIGHTS, st.booleans()), min_size=1, max_size=6))
def test_the_new_state_lies_between_the_devices_states(parts: list[tuple[np.ndarray, float, bool]]) -> None:
    """A device that does not own the block counts as one that did not move it."""
    deltas = [delta if owns else np.zeros(4) for delta, _, owns in parts]
    total = sum(weight * delta for (_, weight, _), delta in zip(parts, deltas, strict=True))
    moved = mean({HEAD: np.asarray(total)}, sum(weight for _, weight, _ in parts))[HEAD]
    slack = 1e-4
    assert (moved >= STATE[HEAD] + np.min(deltas, axis=0) - slack).all()
    assert (moved <= STATE[HEAD] + np.max(deltas, axis=0) + slack).all()


@given(st.data())
def test_the_mean_of_column_tiers_is_the_mean_of_the_dense_updates(data: st.DataObject) -> None:
    """With A frozen, dW = B A is linear in B, so any mix of ranks averages exactly (FFA-LoRA, nested tiers)."""
    tiers, rows, columns = (2, 2, 4), 5, 6
    seed = data.draw(st.integers(0, 2**32 - 1))
    ranks = data.draw(st.lists(st.sampled_from([2, 4, 8]), min_size=3, max_size=6))
    draw = np.random.default_rng(seed)
    a = draw.standard_normal((8, columns))
    stops = np.cumsum(tiers)
    ids = [BlockId(f"lora.B.t{stop}") for stop in stops]
    spec = AdapterSpec(
        blocks=tuple(
            BlockSpec(block_id=name, method="lora", tensors=(TensorSpec(name=name, shape=(rows, width)),))
            for name, width in zip(ids, tiers, strict=True)
        )
    )
    start = {
        name: draw.standard_normal(rows * width).astype(np.float32) for name, width in zip(ids, tiers, strict=True)
    }
    state = AdapterState(spec, start)
    weights = draw.uniform(0.1, 1.0, len(ranks))
    b_of = [draw.standard_normal((rows, rank)) for rank in ranks]  # each device's delta of its own columns

    sums = {name: np.zeros(rows * width) for name, width in zip(ids, tiers, strict=True)}
    for rank, weight, b in zip(ranks, weights, b_of, strict=True):
        for name, width, stop in zip(ids, tiers, stops, strict=True):
            if stop <= rank:
                sums[name] += weight * b[:, stop - width : stop].reshape(-1)
    moved = mean_of(state, RoundSums(sums=sums, total_weight=float(weights.sum()), owner_weights={}))

    def dense(values: AdapterState) -> np.ndarray:
        return np.concatenate([values[name].reshape(rows, -1) for name in ids], axis=1).astype(np.float64) @ a

    expected = sum(w * (b @ a[:rank]) for w, b, rank in zip(weights, b_of, ranks, strict=True)) / weights.sum()
    np.testing.assert_allclose(dense(moved) - dense(state), expected, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_round_without_weight_is_no_mean(weight: float) -> None:
    with pytest.raises(RunFailed, match="positive total weight"):
        mean({HEAD: np.ones(4)}, weight)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    before = {block_id: STATE[block_id].tobytes() for block_id in STATE}
    with pytest.raises(RunFailed, match="head"):
        mean({HEAD: np.array([0.0, bad, 0.0, 0.0])}, 1.0)
    assert {block_id: STATE[block_id].tobytes() for block_id in STATE} == before
