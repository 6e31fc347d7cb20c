"""Diff pruning and FISH mask by their papers' formulas, and the choices that the coordinator makes for them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.aggregate import between_rounds
from fedpeft.catalogue.llama_adapter import LlamaAdapter
from fedpeft.config.model import Adapter, DiffPruning, Fish
from fedpeft.errors import RunFailed
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach, due_blocks
from fedpeft.methods.diffpruning import DiffPart
from fedpeft.methods.fish import FishPart
from fedpeft.methods.llama_adapter import GatedPrompt
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train
from fedpeft.tuning.batches import collate
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

QUERY = "bert.encoder.layer.1.attention.self.query"
X = torch.randn((2, 5, 32), generator=torch.Generator().manual_seed(3))


def one_round(union, round_id, steps=3):
    plan = plan_for(due_blocks(union.spec, union.adapter, round_id), steps=steps, rate=0.05)
    train(union, class_examples(24), plan, seed=0, first_step=(round_id - 1) * steps)
    union.load(between_rounds(union.state(), union.adapter, round_id))


def diff_union(**settings):
    union = attach(tiny_bert(), Adapter(diffpruning=DiffPruning(**settings), head=False), seed=0)
    return union, grafts_of(union.model, DiffPart)


def test_a_gate_is_the_stretched_sigmoid_with_noise_in_a_step_only():
    union, parts = diff_union()
    part, host = parts[QUERY], union.model.get_submodule(QUERY)
    with torch.no_grad():
        part.gate.copy_(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
        part.change.fill_(0.3)
    share = torch.clamp(3 * torch.sigmoid(part.gate) - 1.5, 0, 1)
    with torch.no_grad():
        assert torch.allclose(host(X), X @ (host.weight + share * 0.3).T + host.bias, atol=1e-4)
    union.train_only([BlockId("diffpruning"), BlockId("diffpruning.gate")])
    part.begin_step(0, 0)
    first = part.open_share().detach()
    part.begin_step(0, 1)
    assert not torch.equal(part.open_share().detach(), first)
    part.begin_step(0, 0)
    assert torch.equal(part.open_share().detach(), first)
    assert float(part.penalty().detach()) == pytest.approx(1e-7 * float(torch.sigmoid(part.gate).detach().sum()))
    part.after_backward()
    assert torch.equal(part.open_share().detach(), share.detach())


def test_the_noise_is_that_of_the_papers_uniform_draw():
    union, parts = diff_union()
    union.train_only([BlockId("diffpruning.gate")])
    parts[QUERY].begin_step(0, 0)
    uniform = torch.sigmoid(parts[QUERY]._noise).flatten().sort().values  # log u - log(1 - u) -> u
    assert torch.allclose(uniform, torch.linspace(0, 1, uniform.numel()), atol=0.06)


def test_pruning_keeps_the_largest_changes_and_then_only_they_move():
    union, parts = diff_union(keep=0.02, prune_round=1)
    one_round(union, 1)
    kept = {path: part.open_share() > 0 for path, part in parts.items()}
    total = sum(part.change.numel() for part in parts.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == round(0.02 * total)
    assert all(bool((part.change[~kept[path]] == 0).all()) for path, part in parts.items())
    assert due_blocks(union.spec, union.adapter, 2) == {"diffpruning"}
    before = {path: part.change.detach().clone() for path, part in parts.items()}
    one_round(union, 2)
    for path, part in parts.items():
        moved = part.change != before[path]
        assert not bool((moved & ~kept[path]).any())
        assert bool(moved[kept[path]].all())
        assert torch.equal(part.open_share(), kept[path].float())


PROMPTED = Adapter(llama_adapter=LlamaAdapter(length=5), head=False)


@pytest.mark.parametrize("beside", [Adapter(), PROMPTED], ids=["alone", "beside a prompt in attention"])
def test_the_fisher_information_is_the_mean_squared_gradient_of_each_example(beside):
    def opened(adapter):
        union = attach(tiny_bert(), adapter, seed=0)
        for part in (module for module in union.model.modules() if isinstance(module, GatedPrompt)):
            part.gate.data.fill_(0.7)  # at zero the prompt has no part in the loss
        return union

    union, examples = opened(beside.model_copy(update={"fish": Fish(), "head": False})), class_examples(8)
    train(union, examples, plan_for([BlockId("fish.fisher")], steps=1, rate=0.1), seed=0)
    found = {path: part.fisher.detach() for path, part in grafts_of(union.model, FishPart).items()}

    plain = opened(beside)
    stages = SplitForward(plain)
    weights = {path: plain.model.get_submodule(path).weight.requires_grad_() for path in found}
    expected = {path: torch.zeros_like(weight) for path, weight in weights.items()}
    for i in range(8):
        batch = collate(examples, np.array([i]), pad_id=0, device=stages.device)
        plain.model.zero_grad()
        functional.cross_entropy(*stages.logits(batch)).backward()
        for path, weight in weights.items():
            expected[path] += weight.grad.square()
    # A prompt passes through k and v as well: there both uses are squared one by one.
    once = [path for path in expected if beside is not PROMPTED or path.endswith("query")]
    largest, most = (max(float(values[path].max()) for path in once) for values in (expected, found))
    assert most == 1 or beside is PROMPTED
    for path in once:
        assert torch.allclose(found[path] / most, expected[path] / largest, atol=1e-5), path


def test_the_picks_are_the_largest_of_the_model_and_only_they_change_a_weight():
    union = attach(tiny_bert(), Adapter(fish=Fish(keep=0.01), head=False), seed=0)
    parts = grafts_of(union.model, FishPart)
    draw = np.random.Generator(np.random.Philox(0))
    start = union.initial_state()
    fisher = draw.random(start[BlockId("fish.fisher")].size).astype(np.float32)
    union.load(between_rounds(start.replace({BlockId("fish.fisher"): fisher}), union.adapter, 1))
    assert not union.state()[BlockId("fish.fisher")].any()
    count = start[BlockId("fish")].size
    assert count == 3 * round(0.01 * 2 * 32 * 32)
    one_round(union, 2)
    expected = np.zeros(fisher.size, bool)
    expected[np.argsort(-fisher)[:count]] = True
    changed = []
    for tensor in union.spec[BlockId("fish.fisher")].tensors:
        path = tensor.name.removesuffix(".fedpeft.fish.fisher")
        host = union.model.get_submodule(path)
        with torch.no_grad():
            unit = torch.eye(32)
            change = (host(unit) - host.bias).T - host.weight
        changed.append((change.abs() > 1e-5).numpy().ravel())
    assert len({id(part.picks) for part in parts.values()}) == 1
    assert np.array_equal(np.concatenate(changed), expected)


def test_without_fisher_information_the_run_says_so():
    union = attach(tiny_bert(), Adapter(fish=Fish(), head=False), seed=0)
    with pytest.raises(RunFailed, match="min_cohort"):
        between_rounds(union.initial_state(), union.adapter, 1)
