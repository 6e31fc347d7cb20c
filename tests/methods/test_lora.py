"""LoRA: its formula, its tiers, its initial A."""

import numpy as np
import pytest
import torch

from fedpeft.catalogue.lora import scale_of
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.methods.lora import LoraPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

QUERY = "bert.encoder.layer.1.attention.self.query"


def test_one_matrix_computes_the_formula_of_the_paper():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4, tiers=(1, 4), scale=1.5)), seed=0)
    host, part = union.model.get_submodule(QUERY), grafts_of(union.model, LoraPart)[QUERY]
    draw = torch.Generator().manual_seed(0)
    down, up, x = (torch.randn(shape, generator=draw) for shape in ((4, 32), (32, 4), (2, 5, 32)))
    with torch.no_grad():
        part.set_factors(down, up)
    expected = x @ host.weight.T + host.bias + 1.5 * (x @ down.T @ up.T)
    assert torch.allclose(host(x), expected, atol=1e-5)


def test_dropout_hides_inputs_from_a_in_training_steps_only():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4, tiers=(4,), dropout=0.25)), seed=0)
    host, part = union.model.get_submodule(QUERY), grafts_of(union.model, LoraPart)[QUERY]
    with torch.no_grad():
        part.B["t4"].fill_(0.3)
        whole = host(torch.eye(32))
        part.begin_step(0, 0)
        assert torch.equal(host(torch.eye(32)), whole)  # not trained: nothing is drawn
        union.train_only([BlockId("lora.B.t4")])
        hidden = []
        for step in range(20):
            part.begin_step(0, step)
            change, plain = host(torch.eye(32)) - host.bias - host.weight.T, whole - host.bias - host.weight.T
            seen = change.abs().sum(dim=1) > 1e-6
            assert torch.allclose(change[seen], plain[seen] / 0.75, atol=1e-5)
            hidden.append(32 - int(seen.sum()))
        part.after_backward()
        assert torch.equal(host(torch.eye(32)), whole)
    assert 4 < sum(hidden) / len(hidden) < 12
    assert len(set(hidden)) > 1


def test_gradients_are_those_of_the_formula():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4, tiers=(1, 4), scale=1.5)), seed=0)
    host, part = union.model.get_submodule(QUERY), grafts_of(union.model, LoraPart)[QUERY]
    union.train_only([BlockId("lora.B.t1"), BlockId("lora.B.t4")])
    x = torch.randn((2, 5, 32), generator=torch.Generator().manual_seed(0))
    host(x).square().sum().backward()
    down, _ = part.factors()
    upstream = 2 * host(x).detach().reshape(-1, 32)
    expected = 1.5 * upstream.T @ (x.reshape(-1, 32) @ down.T)  # dB = scale * dY^T (x A^T), (32, 4)
    found = torch.cat([part.B["t1"].grad, part.B["t4"].grad], dim=1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert all(parameter.grad is None for parameter in part.A.values())


def test_the_rows_of_an_orthonormal_a_are_orthonormal():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=8)), seed=0)
    for part in grafts_of(union.model, LoraPart).values():
        down, up = part.factors()
        assert torch.allclose(down @ down.T, torch.eye(8), atol=1e-6)
        assert not up.any()


def test_gaussian_rows_have_norm_one_on_average():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=8, init="gaussian")), seed=0)
    norms = torch.cat([part.factors()[0].norm(dim=1) for part in grafts_of(union.model, LoraPart).values()])
    assert 0.9 < float(norms.mean()) < 1.1
    assert float(norms.std()) > 0.01


@pytest.mark.parametrize("init", ["orthonormal", "gaussian"])
def test_a_lower_rank_has_the_first_rows_of_the_higher(init):
    low, high = (attach(tiny_bert(), Adapter(lora=Lora(rank=r, init=init)), seed=7) for r in (4, 8))
    for path, part in grafts_of(low.model, LoraPart).items():
        rows = grafts_of(high.model, LoraPart)[path].factors()[0][:4]
        assert torch.allclose(part.factors()[0], rows, atol=1e-6)


def test_every_matrix_draws_its_own_rows():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=2)), seed=0)
    first, second, *_ = (part.factors()[0] for part in grafts_of(union.model, LoraPart).values())
    assert not torch.allclose(first, second, atol=0.1)


@pytest.mark.parametrize(("rank", "fixed", "rslora"), [(1, 1.5, 1.5), (4, 1.5, 0.75), (8, 1.5, 1.5 / 8**0.5)])
def test_the_scale_is_fixed_or_divided_by_the_square_root_of_the_unions_rank(rank, fixed, rslora):
    assert scale_of(Lora(rank=rank, scale=1.5)) == fixed
    assert scale_of(Lora(rank=rank, scale=1.5, scaling="rslora")) == pytest.approx(rslora)
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=rank, scale=1.5, scaling="rslora")), seed=0)
    assert {part.scale for part in grafts_of(union.model, LoraPart).values()} == {scale_of(union.adapter.lora)}


def test_tiers_that_do_not_end_in_the_rank_are_refused():
    with pytest.raises(ConfigInvalid, match="ending in 8"):
        attach(tiny_bert(), Adapter(lora=Lora(rank=8, tiers=(2, 4))), seed=0)


@pytest.mark.parametrize(
    ("build", "targets", "per_layer"),
    [
        (tiny_bert, ("q", "k", "v", "o"), 4 * (32 + 32)),
        (tiny_bert, ("up", "down"), 2 * (32 + 64)),
        (tiny_llama, ("q", "v"), (32 + 32) + (32 + 16)),
        (tiny_llama, ("gate", "up", "down"), 3 * (32 + 64)),
    ],
)
def test_parameters_are_rank_times_both_widths_of_each_matrix(build, targets, per_layer):
    union = attach(build(layers=3), Adapter(lora=Lora(rank=4, targets=targets), head=False), seed=0)
    assert sum(block.size for block in union.spec.blocks) == 3 * 4 * per_layer


def test_the_tiers_of_b_add_up_to_b():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=8), head=False), seed=0)
    sizes = {block.block_id: block.size for block in union.spec.blocks if block.trainable}
    assert sizes == {"lora.B.t2": 6 * 32 * 2, "lora.B.t4": 6 * 32 * 2, "lora.B.t8": 6 * 32 * 4}


def test_a_target_that_the_model_lacks_is_refused_with_the_choice():
    with pytest.raises(ConfigInvalid, match="one of q, k, v, o, up, down"):
        attach(tiny_bert(), Adapter(lora=Lora(targets=("q", "gate"))), seed=0)


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(ConfigInvalid, match="at most 32"):
        attach(tiny_bert(), Adapter(lora=Lora(rank=64)), seed=0)


def test_the_mean_of_b_deltas_of_mixed_ranks_is_the_mean_of_their_weight_updates():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4), head=False), seed=0)
    part = grafts_of(union.model, LoraPart)[QUERY]
    draw = np.random.Generator(np.random.Philox(0))
    start = union.initial_state()
    clients = []
    for tiers in (("lora.B.t2",), ("lora.B.t2", "lora.B.t4")):
        changed = {BlockId(b): draw.standard_normal(start[BlockId(b)].shape).astype(np.float32) for b in tiers}
        clients.append(start.replace(changed))

    def update(state):
        union.load(state)
        down, up = part.factors()
        return (up @ down).detach().clone()

    mean = start.replace({b: np.mean([client[b] for client in clients], axis=0, dtype=np.float32) for b in start})
    expected = (update(clients[0]) + update(clients[1])) / 2
    assert torch.allclose(update(mean), expected, atol=1e-5)
