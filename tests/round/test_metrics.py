"""The metrics block: what goes in, what comes out, what is clipped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.ring import BlockEncoding, RingParams
from fedpeft.round.metrics import COUNT_LIMIT, METRIC_BITS, METRIC_RANGES, Contribution, metrics_vector, totals
from fedpeft.secagg.masks import rounding_bits


def contribution(**changes: float) -> Contribution:
    values = {"weight": 0.5, "trained_loss": 6.0, "trained": 4, "evaluated_loss": 9.0, "correct": 2, "evaluated": 3}
    return Contribution(**{**values, **changes})


def test_the_lanes_are_in_the_order_of_the_ranges() -> None:
    vector = metrics_vector(contribution())
    assert vector.dtype == np.float32
    assert vector.tolist() == [0.5, 6.0, 4.0, 9.0, 2.0, 3.0]
    assert len(METRIC_RANGES) == len(vector)


def test_means_are_sums_over_counts_not_means_of_means() -> None:
    vectors = [contribution(), contribution(evaluated_loss=1.0, correct=7, evaluated=7, trained_loss=0.0, trained=8)]
    measured = totals(np.sum([metrics_vector(one) for one in vectors], axis=0, dtype=np.float64))
    assert (measured.loss, measured.accuracy, measured.evaluated) == (1.0, 0.9, 10)
    assert (measured.train_loss, measured.trained, measured.weight) == (0.5, 12, 1.0)


def test_nothing_counted_is_none_and_not_a_division_by_zero() -> None:
    measured = totals(np.zeros(6))
    assert (measured.loss, measured.accuracy, measured.train_loss) == (None, None, None)
    assert (measured.trained, measured.evaluated) == (0, 0)


def test_what_is_larger_than_the_ring_holds_is_clipped_not_wrapped() -> None:
    vector = metrics_vector(contribution(weight=7.0, evaluated_loss=1e30, correct=-3, evaluated=2.0**40))
    assert vector.tolist() == [1.0, 6.0, 4.0, COUNT_LIMIT, 0.0, COUNT_LIMIT]


@pytest.mark.parametrize("devices", [3, 100, 2048])
def test_the_ring_holds_the_largest_counts_of_so_many_devices(devices: int) -> None:
    encoding = BlockEncoding(params=RingParams(bits=METRIC_BITS, addends=devices), ranges=METRIC_RANGES)
    largest = metrics_vector(
        contribution(
            weight=1.0,
            trained_loss=COUNT_LIMIT,
            trained=COUNT_LIMIT,
            evaluated_loss=COUNT_LIMIT,
            correct=COUNT_LIMIT,
            evaluated=COUNT_LIMIT,
        )
    )
    words = encoding.encode(largest, rounding_bits(bytes(32))) * np.uint64(devices)
    np.testing.assert_allclose(encoding.decode(words, devices), devices * largest.astype(np.float64), rtol=1e-7)


@given(st.lists(st.tuples(st.integers(0, 2**24), st.integers(0, 2**24)), min_size=3, max_size=6))
def test_counts_come_through_the_ring_exactly(counts: list[tuple[int, int]]) -> None:
    encoding = BlockEncoding(params=RingParams(bits=METRIC_BITS, addends=len(counts)), ranges=METRIC_RANGES)
    words = encoding.zeros()
    for index, (correct, evaluated) in enumerate(counts):
        vector = metrics_vector(contribution(correct=correct, evaluated=evaluated, trained=evaluated))
        words = words + encoding.encode(vector, rounding_bits(bytes([index]) * 32))
    decoded = encoding.decode(words, len(counts))
    assert decoded[[2, 4, 5]].tolist() == [
        sum(e for _, e in counts),
        sum(c for c, _ in counts),
        sum(e for _, e in counts),
    ]
