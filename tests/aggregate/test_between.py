"""What the coordinator decides between rounds: AdaLoRA's pruning."""

import numpy as np

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec, unflatten
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.between import adalora_budget
from fedpeft.config.model import AdaLora, Adapter, BitFit
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
