"""Robust statistics: what one bad update of many can still do."""

import numpy as np
import pytest

from fedpeft.aggregate.robust import assign_buckets, robust_mean
from fedpeft.config.aggregate import Aggregate
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

HEAD = BlockId("head")


def mean_of(kind: str, updates: list[list[float]], **options: object) -> list[float]:
    rule = Aggregate.model_validate({"robust": kind, **options})
    return list(robust_mean(rule, [{HEAD: np.array(one)} for one in updates])[HEAD])


GOOD = [[1.0, 0.0], [1.2, 0.2], [0.8, -0.2], [1.0, 0.1]]
BAD = [1e6, -1e6]


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
def test_one_bad_update_does_not_move_the_result(kind: str) -> None:
    x, y = mean_of(kind, [*GOOD, BAD])
    assert 0.8 <= x <= 1.2
    assert -0.2 <= y <= 0.2


def test_a_norm_bound_limits_what_a_bad_update_adds() -> None:
    x, _ = mean_of("norm-bound", [*GOOD, BAD], norm_bound=1.0)
    assert abs(x) < 1.3
    assert mean_of("norm-bound", [[3.0, 4.0]], norm_bound=1.0) == pytest.approx([0.6, 0.8])
    assert np.linalg.norm(mean_of("norm-bound", [*GOOD, BAD])) < 1.5  # 0: the median of the norms


@pytest.mark.parametrize("kind", ["median", "trimmed-mean"])
def test_where_honest_updates_disagree_a_bad_one_moves_the_result_by_no_more_than_its_clipped_norm(kind: str) -> None:
    """Two against two in every coordinate: the statistic is the bad update's to choose, within three median norms."""
    honest = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    assert np.linalg.norm(mean_of(kind, [*honest, [1e9, 1e9]], bad_fraction=0.01)) <= 3 * np.sqrt(2)
    three = [[1.0, 0.0], [0.0, 1.0], [1e9, 1e9]]
    moved = robust_mean(Aggregate(robust=kind), [{HEAD: np.array(one)} for one in three])[HEAD]
    assert np.linalg.norm(moved) <= 3


def test_krum_is_one_of_the_updates() -> None:
    assert mean_of("krum", [*GOOD, BAD]) in GOOD


def test_a_block_that_some_updates_lack_is_judged_by_those_that_have_it() -> None:
    rule = Aggregate(robust="median")
    other = BlockId("bitfit")
    updates = [{HEAD: np.ones(1), other: np.full(1, 5.0)}, {HEAD: np.ones(1)}, {HEAD: np.zeros(1)}]
    assert robust_mean(rule, updates)[other] == [5.0]


@pytest.mark.parametrize(("kind", "count"), [("median", 2), ("krum", 3)])
def test_too_few_updates_are_refused(kind: str, count: int) -> None:
    with pytest.raises(RunFailed, match="updates or more"):
        mean_of(kind, GOOD[:count])


def test_buckets_are_even_and_repeat_with_the_seed() -> None:
    names = [f"d{i}" for i in range(10)]
    buckets = assign_buckets(names, 3, seed=1, round_id=1)
    assert sorted(np.bincount(list(buckets.values()))[1:]) == [3, 3, 4]
    assert buckets == assign_buckets(names, 3, seed=1, round_id=1)
    assert assign_buckets(names, 0, seed=1, round_id=1) == {}
