"""Compacter, hypernetwork, UniPELT and CoDA: the papers' formulas, re-derived, and their counts."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.catalogue.coda import Coda
from fedpeft.catalogue.compacter import Compacter
from fedpeft.catalogue.hypernetwork import Hypernetwork
from fedpeft.catalogue.unipelt import Unipelt
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.coda import CodaPart, soft_top_k
from fedpeft.methods.compacter import CompacterPart, kronecker_sum
from fedpeft.methods.hypernetwork import MadeBottleneck
from fedpeft.methods.unipelt import GatedBottleneck, GatedLora, GatedPrefix
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

BOTH = pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
H, LAYERS, M = 32, 3, 8
IDS = torch.tensor([[5, 9, 17, 33, 2, 8, 61]])


def disturbed(adapter: Adapter, build, size: float = 0.3):
    union = attach(build(), adapter, seed=0)
    draw = np.random.Generator(np.random.Philox(3))
    start = union.initial_state()
    moved = {b: (v + size * draw.standard_normal(v.shape)).astype(np.float32) for b, v in start.items()}
    union.load(start.replace(moved))
    return union


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@BOTH
@pytest.mark.parametrize(
    ("adapter", "sizes"),
    [
        (Adapter(compacter=Compacter(width=M)), lambda w: [4**3 + 2 * LAYERS * (2 * (M + H) + M + H)]),
        (Adapter(compacter=Compacter(width=M, terms=2, rank=3)), lambda w: [2**3 + 2 * LAYERS * (7 * (M + H))]),
        (
            Adapter(hypernetwork=Hypernetwork(width=M, embedding=6)),
            lambda w: [6 * (LAYERS + 2) + 3 * 36 + 6 + 2 * M * H * 6, 6],
        ),
        (
            Adapter(unipelt=Unipelt(rank=2, length=5, width=M)),
            lambda w: [LAYERS * (2 * (3 * H + w) + 2 * 5 * w + 2 * H * M + M + H + 4 * (H + 1))],
        ),
        (Adapter(coda=Coda(width=M)), lambda w: [LAYERS * (2 * H * M + M + 2 * H)]),
    ],
    ids=["compacter", "compacter of rank 3", "hypernetwork", "unipelt", "coda"],
)
def test_parameters_are_the_papers(build, adapter, sizes):
    union = attach(build(), adapter.model_copy(update={"head": False}), seed=0)
    assert [block.size for block in union.spec.blocks] == sizes(32 if build is tiny_bert else 16)


def test_a_compacter_matrix_is_the_sum_of_kronecker_products():
    rules, left, right = random(3, 3, 3), random(3, 4, 2, seed=1), random(3, 2, 5, seed=2)
    expected = sum(torch.kron(rules[i], left[i] @ right[i]) for i in range(3))
    assert torch.allclose(kronecker_sum(rules, left, right), expected, atol=1e-5)


def test_a_compacter_computes_its_formula_with_one_set_of_slow_weights():
    union = disturbed(Adapter(compacter=Compacter(width=M)), tiny_bert)
    parts = grafts_of(union.model, CompacterPart)
    assert len(parts) == 2 * LAYERS
    assert len({part.slow.rules.data_ptr() for part in parts.values()}) == 1
    (path, part), *_ = parts.items()
    host, x = union.model.get_submodule(path), random(2, 4, H)
    with torch.no_grad():
        y = functional.linear(x, host.weight, host.bias)
        down = sum(torch.kron(part.slow.rules[i], part.down_left[i] @ part.down_right[i]) for i in range(4))
        up = sum(torch.kron(part.slow.rules[i], part.up_left[i] @ part.up_right[i]) for i in range(4))
        expected = y + functional.gelu(y @ down.T + part.down_bias) @ up.T + part.up_bias
        assert torch.allclose(host(x), expected, atol=1e-4)


def test_terms_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigInvalid, match=r"a divisor of adapter\.compacter\.width, 10"):
        attach(tiny_bert(), Adapter(compacter=Compacter(width=10)), seed=0)


@BOTH
def test_a_hypernetwork_makes_every_bottleneck_from_its_embeddings(build):
    union = disturbed(Adapter(hypernetwork=Hypernetwork(width=M, embedding=6)), build)
    parts = grafts_of(union.model, MadeBottleneck)
    assert [(part.layer, part.place) for part in parts.values()] == [(i, j) for i in range(LAYERS) for j in (0, 1)]
    path, part = list(parts.items())[3]
    host, x, maker = union.model.get_submodule(path), None, part.maker
    x = random(2, 4, host.in_features)
    with torch.no_grad():
        mixed = torch.cat((maker.task, maker.layers[1], maker.places[1]))
        inner = torch.relu(maker.mixing @ mixed + maker.mixing_bias)
        down, up = (maker.downs @ inner).view(M, H), (maker.ups @ inner).view(H, M)
        y = functional.linear(x, host.weight, host.bias)
        assert torch.allclose(host(x), y + torch.relu(y @ down.T) @ up.T, atol=1e-3)


def test_unipelt_computes_gated_lora_gated_prefix_and_gated_bottleneck():
    union = disturbed(Adapter(unipelt=Unipelt(rank=2, length=5, width=M, scale=1.5), layers=1), tiny_bert)
    layer, x = union.model.bert.encoder.layer[2], random(2, 4, H)
    host, bare = layer.attention.self, tiny_bert().bert.encoder.layer[2].attention.self
    lora = {path.rpartition(".")[2]: part for path, part in grafts_of(layer, GatedLora).items()}
    (prefix,), (narrow,) = grafts_of(layer, GatedPrefix).values(), grafts_of(layer, GatedBottleneck).values()

    def gate(part, h):
        return torch.sigmoid(h @ part.weight + part.bias)[..., None]

    def split(t):
        return t.view(*t.shape[:-1], 4, 8).transpose(-2, -3)

    with torch.no_grad():
        q, v = (
            getattr(bare, name)(x) + gate(lora[name].gate, x) * 1.5 * (x @ lora[name].down.T @ lora[name].up.T)
            for name in ("query", "value")
        )
        opened = gate(lora["query"].prefix_gate, x)[:, None]  # (b, 1, s, 1)
        query, key, value = split(q), split(bare.key(x)), split(v)
        scores = torch.cat((opened * (query @ split(prefix.key).transpose(-1, -2)), query @ key.transpose(-1, -2)), -1)
        weights = torch.softmax(scores / math.sqrt(8), dim=-1)
        mixed = opened * (weights[..., :5] @ split(prefix.value)) + weights[..., 5:] @ value
        assert torch.allclose(host(x)[0], mixed.transpose(1, 2).reshape(x.shape), atol=1e-4)
        wide = random(2, 4, 64)
        y = functional.linear(wide, layer.output.dense.weight, layer.output.dense.bias)
        added = torch.relu(y @ narrow.down.T + narrow.down_bias) @ narrow.up.T + narrow.up_bias
        assert torch.allclose(layer.output.dense(wide), y + gate(narrow.gate, y) * added, atol=1e-4)


def test_the_soft_top_k_adds_up_and_stays_below_one():
    scores = random(3, 6) * 4
    weights = soft_top_k(scores, torch.tensor([[1.0], [3.0], [6.0]]))
    assert torch.allclose(weights.sum(dim=1), torch.tensor([1.0, 3.0, 6.0]), atol=1e-2)
    assert float(weights.max()) <= 1 + 1e-6
    assert float(weights.gather(1, scores.argsort(dim=1)).diff(dim=1).min()) >= -1e-6  # a higher score, no less weight


@BOTH
def test_with_full_capacity_coda_begins_as_the_base(build):
    with torch.no_grad():
        found = attach(build(), Adapter(coda=Coda(width=M, capacity=1.0), head=False), seed=0).model(IDS).logits
        assert torch.allclose(found, build()(IDS).logits, atol=1e-5)


def test_only_the_picked_tokens_go_through_the_layer_and_only_among_themselves():
    union = disturbed(Adapter(coda=Coda(width=4, capacity=0.5), layers=1), tiny_bert)
    layer, bare, x = union.model.bert.encoder.layer[2], tiny_bert().bert.encoder.layer[2], random(1, 6, H)
    (part,) = grafts_of(layer, CodaPart).values()
    with torch.no_grad():
        picked, weights = part.pick(x, torch.ones(1, 6, dtype=torch.bool))
        chosen = picked[0].nonzero()[:, 0]
        assert len(chosen) == 3
        assert 0 in chosen
        heavy = bare(x[:, chosen]) - x[:, chosen]
        light = x + torch.relu(x @ part.down.T + part.down_bias) @ part.up.T + part.up_bias
        expected = light.clone()
        expected[:, chosen] += weights[:, chosen, None] * heavy
        assert torch.allclose(layer(x), expected, atol=1e-4)


def test_a_decoder_picks_about_its_capacity_and_never_by_what_follows():
    part = CodaPart(random(4, H), Coda(width=4, capacity=0.5), causal=True)
    with torch.no_grad():
        part.router.copy_(random(H, seed=1))
        x, real = random(40, 60, H, seed=2), torch.ones(40, 60, dtype=torch.bool)
        whole, _ = part.pick(x, real)
        begun, _ = part.pick(x[:, :30], real[:, :30])
    assert torch.equal(whole[:, :30], begun)
    assert 0.4 < float(whole.float().mean()) < 0.6
