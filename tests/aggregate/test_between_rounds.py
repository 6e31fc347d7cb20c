"""What the coordinator decides between rounds: AdaLoRA's pruning, the head of class means."""

import numpy as np
import pytest

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec, unflatten
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.head_start import with_unseen_rows, without_means
from fedpeft.catalogue.adalora import adalora_budget
from fedpeft.config.model import AdaLora, Adapter, BitFit
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

ADAPTER = Adapter(adalora=AdaLora(rank=2, target_rank=1, warmup_rounds=1, prune_until=3))
HOSTS = ("a", "b", "c")


def state(scores: list[float]) -> AdapterState:
    """Three matrices of two triplets, l all ones, P and Q all twos."""
    one = [TensorSpec(name=f"{h}.{n}", shape=s) for h in HOSTS for n, s in (("left", (3, 2)), ("values", (2,)))]

    def vector(name: str) -> BlockSpec:
        tensors = tuple(TensorSpec(name=f"{h}.{name}", shape=(2,)) for h in HOSTS)
        return BlockSpec(
            block_id=BlockId(f"adalora.{name}"), method="adalora", tensors=tensors, trainable=name == "score"
        )

    spec = AdapterSpec(
        blocks=(
            vector("mask"),
            BlockSpec(block_id=BlockId("adalora"), method="adalora", tensors=tuple(one)),
            vector("score"),
        )
    )
    main = np.concatenate([np.r_[np.full(6, 2.0), np.ones(2)] for _ in HOSTS])
    vectors = {"adalora.mask": np.ones(6), "adalora": main, "adalora.score": np.array(scores)}
    return AdapterState(spec, {BlockId(name): values.astype(np.float32) for name, values in vectors.items()})


def singular(after: AdapterState) -> list[float]:
    tensors = unflatten(after.spec[BlockId("adalora")], after[BlockId("adalora")])
    return [float(v) for name, values in tensors.items() if name.endswith("values") for v in values]


def test_nothing_is_pruned_before_the_schedule_begins_or_after_it_ends() -> None:
    begin = state([0.9, 0.1, 0.5, 0.4, 0.3, 0.2])
    assert between_rounds(begin, ADAPTER, 1) is begin
    assert between_rounds(begin, ADAPTER, 4) is begin
    assert between_rounds(begin, Adapter(bitfit=BitFit()), 2) is begin


def test_the_least_important_triplets_lose_their_l_and_may_grow_again() -> None:
    after = between_rounds(state([0.9, 0.1, 0.5, 0.4, 0.3, 0.2]), ADAPTER, 2)
    assert adalora_budget(ADAPTER.adalora, 3, 2) == 3  # type: ignore[arg-type]
    assert singular(after) == [1, 0, 1, 1, 0, 0]
    assert after[BlockId("adalora.mask")].tolist() == [1] * 6
    left = unflatten(after.spec[BlockId("adalora")], after[BlockId("adalora")])["a.left"]
    assert (left == 2).all()


def test_the_last_pruning_fixes_the_mask_over_all_matrices_together() -> None:
    after = between_rounds(state([0.9, 0.8, 0.5, 0.1, 0.0, 0.0]), ADAPTER, 3)
    assert after[BlockId("adalora.mask")].tolist() == [1, 1, 1, 0, 0, 0]
    assert singular(after) == [1, 1, 1, 0, 0, 0]


def test_ties_are_broken_by_place_so_that_every_machine_chooses_alike() -> None:
    assert singular(between_rounds(state([0.5] * 6), ADAPTER, 3)) == [1, 1, 1, 0, 0, 0]


MEANS = Adapter(bitfit=BitFit(), head_start="class-means")
HEAD = BlockId("head")


def head_of(rows: list[list[float]]) -> AdapterState:
    """A dense layer of ones, the classifier's rows, a bias of ones."""
    weight = np.array(rows, np.float32)
    classes, hidden = weight.shape
    shapes = {"dense.weight": (hidden, hidden), "out.weight": weight.shape, "out.bias": (classes,)}
    tensors = tuple(TensorSpec(name=name, shape=shape) for name, shape in shapes.items())
    spec = AdapterSpec(blocks=(BlockSpec(block_id=HEAD, method="head", tensors=tensors),))
    return AdapterState(
        spec, {HEAD: np.concatenate([np.ones(hidden**2), weight.ravel(), np.ones(classes)], dtype="f4")}
    )


def rows_after(rows: list[list[float]]) -> np.ndarray:
    begin = head_of(rows)
    after = unflatten(begin.spec[HEAD], between_rounds(begin, MEANS, 1)[HEAD])
    assert (after["dense.weight"] == 1).all()
    assert (after["out.bias"] == 1).all()
    return after["out.weight"]


def test_the_head_is_the_directions_of_the_class_means_less_what_they_share() -> None:
    found = rows_after([[0.6, 0.0], [0.0, 0.2]])
    assert np.allclose(found, 50.0 * 0.8 * np.array([[0.5, -0.5], [-0.5, 0.5]]))


def test_how_many_examples_a_class_has_and_how_long_features_are_change_no_logit_of_them() -> None:
    features = np.array([[3.0, 4.0], [4.0, 3.0]])  # of length 5
    for scale in (1.0, 7.0):
        for share in (0.5, 0.1):
            weights = np.array([[share], [1 - share]])
            length = 5.0 * scale
            rows = rows_after((weights * features * scale / length**2).tolist())
            assert np.allclose(rows @ (features * scale).T, 50.0 * 0.02 * np.array([[1, -1], [-1, 1]]), atol=1e-4)


def test_a_class_that_nobody_has_keeps_a_row_of_zeros() -> None:
    found = rows_after([[0.5, 0.0], [0.0, 0.0], [0.0, 0.5]])
    assert not found[1].any()
    assert found[0].any()


def test_no_class_means_at_all_end_the_run_with_the_reason() -> None:
    with pytest.raises(RunFailed, match="class means from round 1, found none"):
        between_rounds(head_of([[0.0, 0.0], [0.0, 0.0]]), MEANS, 1)


def test_only_the_first_round_makes_the_head() -> None:
    begin = head_of([[0.6, 0.0], [0.0, 0.2]])
    assert between_rounds(begin, MEANS, 2) is begin
    assert between_rounds(begin, Adapter(bitfit=BitFit()), 1) is begin


def test_with_a_refresh_later_rounds_make_the_head_again() -> None:
    begin, again = head_of([[0.6, 0.0], [0.0, 0.2]]), MEANS.model_copy(update={"head_refresh": 3})
    made = [between_rounds(begin, again, round_id) is not begin for round_id in range(1, 9)]
    assert made == [True, False, False, True, False, False, True, False]


def test_a_class_whose_holder_is_absent_in_a_later_round_of_class_means_keeps_its_row() -> None:
    old, new = head_of([[1.0, 2.0], [3.0, 4.0]]), head_of([[0.5, 0.25], [0.0, 0.0]])
    found = unflatten(old.spec[HEAD], with_unseen_rows(old, new)[HEAD])
    assert found["out.weight"].tolist() == [[0.5, 0.25], [3.0, 4.0]]
    assert (found["dense.weight"] == 1).all()


def test_what_a_round_of_class_means_adds_to_is_the_head_without_its_rows() -> None:
    begin = head_of([[0.6, 0.0], [0.0, 0.2]])
    cleared = unflatten(begin.spec[HEAD], without_means(begin)[HEAD])
    assert not cleared["out.weight"].any()
    assert (cleared["dense.weight"] == 1).all()
    assert (cleared["out.bias"] == 1).all()


def test_after_a_round_of_class_means_the_methods_count_from_the_next() -> None:
    pruned = state([0.9, 0.1, 0.5, 0.4, 0.3, 0.2])
    spec = AdapterSpec(blocks=(*pruned.spec.blocks, *head_of([[1.0, 0.0], [0.0, 1.0]]).spec.blocks))
    both = AdapterState(spec, {**pruned, HEAD: head_of([[1.0, 0.0], [0.0, 1.0]])[HEAD]})
    later = ADAPTER.model_copy(update={"head_start": "class-means"})
    assert between_rounds(both, later, 2) is both
    assert singular(between_rounds(both, later, 3)) == [1, 0, 1, 1, 0, 0]
