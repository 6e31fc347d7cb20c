"""Adapter arithmetic: each rule against the peft library, exactness where it is promised, refusals."""

import numpy as np
import pytest

from fedpeft.errors import ConfigInvalid
from fedpeft.export.arithmetic import LowRank, combine

SHAPE = (32, 32)


def change(seed: int, *, rank: int = 4, scale: float = 0.7, down: np.ndarray | None = None) -> LowRank:
    draw = np.random.Generator(np.random.Philox(seed))
    first, second = draw.standard_normal((rank, SHAPE[1])), draw.standard_normal((SHAPE[0], rank))
    return LowRank(down=first if down is None else down, up=second, scale=scale)


def product(one: LowRank) -> np.ndarray:
    return one.scale * one.up @ one.down


def of_peft(changes, weights, kind: str, **rest) -> np.ndarray:
    """The matrix that peft's add_weighted_adapter makes."""
    import torch
    from peft import LoraConfig, get_peft_model

    from fedpeft.testing.models import tiny_bert

    names = [f"a{index}" for index in range(len(changes))]
    model = None
    for name, one in zip(names, changes, strict=True):
        rank = len(one.down)
        config = LoraConfig(r=rank, lora_alpha=one.scale * rank, target_modules=["0.attention.self.query"])
        if model is None:
            model = get_peft_model(tiny_bert(layers=1), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        for name, one in zip(names, changes, strict=True):
            layer.lora_A[name].weight.copy_(torch.from_numpy(one.down))
            layer.lora_B[name].weight.copy_(torch.from_numpy(one.up))
        model.add_weighted_adapter(names, list(weights), "all", combination_type=kind, **rest)
        return layer.get_delta_weight("all").numpy()


@pytest.mark.torch
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -0.4)])
@pytest.mark.parametrize(
    ("rule", "kind", "rest"),
    [("linear", "linear", {}), ("cat", "cat", {}), ("svd", "svd", {}), ("ties", "ties", {"density": 0.5})],
)
def test_a_rule_gives_the_matrix_that_peft_gives(rule, kind, rest, weights):
    changes = [change(1), change(2, scale=1.3)]
    ours = product(combine(changes, weights, rule, **rest))
    assert np.allclose(ours, of_peft(changes, weights, kind, **rest), atol=1e-4)


def test_cat_is_the_exact_sum_whatever_the_ranks():
    changes, weights = [change(1, rank=2), change(2, rank=6), change(3)], (0.2, -1.0, 0.7)
    expected = sum(w * product(one) for w, one in zip(weights, changes, strict=True))
    merged = combine(changes, weights, "cat")
    assert len(merged.down) == 12
    assert np.allclose(product(merged), expected)


def test_svd_is_the_best_approximation_of_its_rank():
    changes, weights = [change(1), change(2, rank=6)], (0.3, 0.9)
    exact = sum(w * product(one) for w, one in zip(weights, changes, strict=True))
    u, sizes, v = np.linalg.svd(exact)
    assert np.allclose(product(combine(changes, weights, "svd", rank=3)), (u[:, :3] * sizes[:3]) @ v[:3])
    assert np.allclose(product(combine(changes, weights, "svd", rank=20)), exact)


def test_with_one_shared_a_linear_is_the_exact_sum():
    shared = change(1).down
    changes, weights = [change(1), change(2, down=shared), change(3, down=shared, scale=2.0)], (0.5, 0.8, -0.1)
    expected = sum(w * product(one) for w, one in zip(weights, changes, strict=True))
    merged = combine(changes, weights, "linear")
    assert np.array_equal(merged.down, shared)
    assert np.allclose(product(merged), expected)


def test_ties_keeps_the_largest_entries_and_the_sign_of_the_sum():
    down = np.eye(4, SHAPE[1])
    first = LowRank(down=down, up=np.array([[4.0, 1.0, -3.0, 0.5]]), scale=1.0)
    second = LowRank(down=down, up=np.array([[-2.0, 5.0, -1.0, 0.1]]), scale=1.0)
    # Half of each: (4, 0, -3, 0) and (-2, 5, 0, 0); signs of the sum +, +, -; means of those that agree.
    found = combine([first, second], (1.0, 1.0), "ties", density=0.5).up
    assert np.array_equal(found, [[4.0, 5.0, -3.0, 0.0]])


def test_dare_keeps_a_share_and_the_expectation():
    shared = change(1).down
    changes = [LowRank(down=shared, up=np.ones((400, 4)), scale=1.0) for _ in range(2)]
    draw = np.random.Generator(np.random.Philox(0))
    found = combine(changes, (0.5, 0.5), "dare", density=0.25, draw=draw).up
    assert set(np.unique(found)) == {0.0, 2.0, 4.0}
    assert abs(float(found.mean()) - 1.0) < 0.1


@pytest.mark.parametrize("rule", ["linear", "ties", "dare"])
def test_rules_that_add_factors_refuse_unequal_ranks_with_what_to_use(rule):
    with pytest.raises(ConfigInvalid, match="use svd or cat"):
        combine([change(1), change(2, rank=6)], (0.5, 0.5), rule, draw=np.random.default_rng(0))
