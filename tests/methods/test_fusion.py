"""AdapterFusion: the paper's formula over adapters of earlier runs, which are filled in, sent and never trained."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.catalogue.bottleneck import Bottleneck
from fedpeft.catalogue.fusion import Fusion
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.export import export_peft
from fedpeft.export.earlier_runs import with_sources
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.fusion import FusionPart
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train

pytestmark = pytest.mark.torch

BOTH = pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
ADAPTER = Adapter(fusion=Fusion(tasks=("claims", "notes"), width=4), head=False)
EARLIER = Adapter(bottleneck=Bottleneck(width=4, placement="pfeiffer"), head=False)


@pytest.fixture
def folders(tmp_path, request):
    """Two adapters of earlier runs, exported."""
    build = request.node.callspec.params["build"]
    found = {}
    for seed, task in enumerate(ADAPTER.fusion.tasks):
        union = attach(build(), EARLIER, seed=seed)
        draw = np.random.Generator(np.random.Philox(seed))
        start = union.initial_state()
        union.load(start.replace({b: (v + 0.3 * draw.standard_normal(v.shape)).astype("f4") for b, v in start.items()}))
        export_peft(union, tmp_path / task, base="pypi:tiny")
        found[task] = str(tmp_path / task)
    return found


@BOTH
def test_the_fused_model_computes_the_papers_formula_on_the_earlier_adapters(build, folders):
    union = attach(build(), ADAPTER, seed=0)
    union.load(with_sources(union.initial_state(), ADAPTER, folders))
    (path, part), *_ = grafts_of(union.model, FusionPart).items()
    host = union.model.get_submodule(path)
    x = torch.randn((2, 5, host.in_features), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        part.query.mul_(10)
        part.key.mul_(10)
        y = functional.linear(x, host.weight, host.bias)
        made = [torch.relu(y @ a.down.T + a.down_bias) @ a.up.T + a.up_bias for a in part.adapters.values()]
        scores = torch.stack([((y @ part.query.T) * (z @ part.key.T)).sum(-1) for z in made], dim=-1)
        weights = torch.softmax(scores, dim=-1)
        expected = y + sum(weights[..., n : n + 1] * (z @ part.value.T) for n, z in enumerate(made))
        assert torch.allclose(host(x), expected, atol=1e-4)
        assert float(weights.std()) > 0.01


@BOTH
def test_what_an_earlier_run_learnt_is_what_is_fused(build, folders):
    state = with_sources(attach(build(), ADAPTER, seed=0).initial_state(), ADAPTER, folders)
    for seed, task in enumerate(ADAPTER.fusion.tasks):
        start = attach(build(), EARLIER, seed=seed).initial_state()["bottleneck"]
        draw = np.random.Generator(np.random.Philox(seed))
        assert np.array_equal(state[f"fusion.{task}"], (start + 0.3 * draw.standard_normal(start.shape)).astype("f4"))


@BOTH
def test_training_moves_the_attention_and_no_adapter(build, folders):
    union = attach(build(), ADAPTER, seed=0)
    before = with_sources(union.initial_state(), ADAPTER, folders)
    union.load(before)
    train(union, examples_for(build, 24), plan_for(["fusion"], steps=4, rate=1e-2), seed=0)
    after = union.state()
    assert {b for b in before if after.digests[b] != before.digests[b]} == {"fusion"}
    assert union.spec["fusion"].size == 3 * 3 * 32 * 32
    assert union.spec["fusion.notes"].size == 3 * (2 * 32 * 4 + 4 + 32)
    named = union.parameters("fusion")
    start = attach(build(), ADAPTER, seed=0).parameters("fusion")
    assert not any(torch.equal(named[name], start[name]) for name in named)


@pytest.mark.parametrize("build", [tiny_bert])
def test_adapters_that_are_missing_or_of_another_shape_are_refused_together(build, folders):
    other = Adapter(fusion=Fusion(tasks=("claims", "letters"), width=8), head=False)
    with pytest.raises(ConfigInvalid) as caught:
        with_sources(attach(build(), other, seed=0).initial_state(), other, folders)
    assert [problem.where for problem in caught.value.problems] == ["base.adapters.claims", "base.adapters.letters"]
    assert "width 8" in str(caught.value)


def test_without_fusion_nothing_is_filled_in():
    union = attach(tiny_bert(), EARLIER, seed=0)
    assert with_sources(union.initial_state(), EARLIER, {}) is union.initial_state()
