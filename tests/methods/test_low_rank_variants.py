"""DyLoRA, ReLoRA, QA-LoRA and AdaLoRA by their papers' formulas."""

import numpy as np
import pytest
import torch

from fedpeft.base.quantize import quantize
from fedpeft.base.residency import PackedWeight, QuantizedLinear
from fedpeft.config.model import AdaLora, Adapter, DyLora, QaLora, ReLora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach, due_blocks
from fedpeft.methods.adalora import AdaLoraPart
from fedpeft.methods.dylora import DyLoraPart
from fedpeft.methods.qalora import QaLoraPart, merge
from fedpeft.methods.relora import ReLoraPart
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train

pytestmark = pytest.mark.torch

QUERY = "bert.encoder.layer.1.attention.self.query"
X = torch.randn((2, 5, 32), generator=torch.Generator().manual_seed(3))


def filled(part):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return part


def one(kind, **method):
    union = attach(tiny_bert(), Adapter(**method), seed=0)
    return union.model.get_submodule(QUERY), filled(grafts_of(union.model, kind)[QUERY])


def plain(host):
    return X @ host.weight.T + host.bias


@torch.no_grad()
def test_dylora_is_lora_of_the_drawn_rank_in_a_step_and_of_the_whole_rank_otherwise():
    host, part = one(DyLoraPart, dylora=DyLora(rank=4, scale=1.5))
    whole = plain(host) + 1.5 * X @ part.A.T @ part.B.T
    part.begin_step(0, 0)
    assert torch.allclose(host(X), whole, atol=1e-4)  # not trained: nothing is drawn
    part.B.requires_grad_()
    ranks = []
    for step in range(64):
        part.begin_step(7, step)
        ranks.append(part.active)
        k = part.active
        assert torch.allclose(host(X), plain(host) + 1.5 * X @ part.A[:k].T @ part.B[:, :k].T, atol=1e-4)
    part.after_backward()
    assert torch.allclose(host(X), whole, atol=1e-4)
    assert set(ranks) == {1, 2, 3, 4}
    assert min(ranks.count(rank) for rank in range(1, 5)) > 6


def test_every_matrix_of_a_model_draws_the_same_rank():
    union = attach(tiny_bert(), Adapter(dylora=DyLora(rank=4)), seed=0)
    union.train_only([BlockId("dylora")])
    parts = list(grafts_of(union.model, DyLoraPart).values())
    for step in range(8):
        for part in parts:
            part.begin_step(0, step)
        assert len({part.active for part in parts}) == 1


def test_relora_adds_up_to_a_rank_above_that_of_a_cycle():
    relora = ReLora(rank=2, cycles=3, rounds_each=1)
    union, examples = attach(tiny_bert(), Adapter(relora=relora, head=False), seed=0), class_examples()
    part = grafts_of(union.model, ReLoraPart)[QUERY]
    for round_id in (1, 2, 3):
        held = {c: b.detach().clone() for c, b in part.B.items()}
        train(union, examples, plan_for(due_blocks(union.spec, union.adapter, round_id), steps=2, rate=0.05), seed=0)
        changed = [cycle for cycle, b in part.B.items() if not torch.equal(b, held[cycle])]
        assert changed == [f"c{round_id}"]
        down, up = part.as_lora()
        singular = torch.linalg.svdvals((up @ down).detach().double())
        assert int((singular > 1e-6 * singular[0]).sum()) == 2 * round_id
    rows = torch.cat(list(part.A.values()))
    assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-6)


def test_relora_wants_room_for_all_its_cycles():
    with pytest.raises(ConfigInvalid, match="at most 32"):
        attach(tiny_bert(), Adapter(relora=ReLora(rank=8, cycles=5)), seed=0)


@torch.no_grad()
def test_qalora_reads_sums_of_32_inputs():
    union = attach(tiny_bert(), Adapter(qalora=QaLora(rank=2, targets=("down",), scale=1.5)), seed=0)
    path = "bert.encoder.layer.1.output.dense"
    host, part = union.model.get_submodule(path), filled(grafts_of(union.model, QaLoraPart)[path])
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(0))
    pooled = torch.stack([x[:, :32].sum(1), x[:, 32:].sum(1)], dim=1)
    expected = x @ host.weight.T + host.bias + 1.5 * pooled @ part.A.T @ part.B.T
    assert torch.allclose(host(x), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_qalora_merges_into_the_quantized_weights_without_touching_a_code(build):
    model, merged = build(), build()
    slots = ("q", "v", "down")
    union = attach(model, Adapter(qalora=QaLora(rank=1, targets=slots)), seed=0)
    for path, part in grafts_of(union.model, QaLoraPart).items():
        dense = merged.get_submodule(path)
        packed = PackedWeight(quantize(dense.weight, "int4-g32"), "int4-g32", tuple(dense.weight.shape))
        union.model.get_submodule(path).weight.data.copy_(packed.unpack())
        part.B.copy_(0.02 * torch.randn(part.B.shape, generator=torch.Generator().manual_seed(2)))
        changed = merge(part, packed)
        assert torch.equal(changed.parts["int4"], packed.parts["int4"])
        assert torch.equal(changed.parts["scale"], packed.parts["scale"])
        merged.set_submodule(path, QuantizedLinear(changed, dense.bias))
    ids = torch.tensor([[5, 9, 17, 33, 2]])
    apart = float((union.model(ids).logits - merged(ids).logits).abs().max())
    effect = float((union.model(ids).logits - build()(ids).logits).abs().max())
    assert apart < 0.02 * effect  # the minima are float16


def test_qalora_merges_into_no_other_base_and_wants_groups():
    _, part = one(QaLoraPart, qalora=QaLora(rank=1))
    weight = torch.ones(32, 32)
    with pytest.raises(ConfigInvalid, match="int4-g32"):
        merge(part, PackedWeight(quantize(weight, "int8"), "int8", (32, 32)))
    with pytest.raises(ConfigInvalid, match="at most 1, the groups of 32 inputs") as refused:
        attach(tiny_bert(), Adapter(qalora=QaLora(rank=2)), seed=0)
    assert "lora" in str(refused.value.problems[0].remedy)


@torch.no_grad()
def test_adalora_computes_the_papers_form_and_the_mask_silences_triplets():
    host, part = one(AdaLoraPart, adalora=AdaLora(rank=4, scale=1.5))
    part.mask.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    change = part.left @ torch.diag(part.values * part.mask) @ part.right
    assert torch.allclose(host(X), plain(host) + 1.5 * X @ change.T, atol=1e-3)


def test_adalora_is_pulled_towards_orthonormal_factors():
    union = attach(tiny_bert(), Adapter(adalora=AdaLora(rank=4, orthogonality=0.5)), seed=0)
    part = grafts_of(union.model, AdaLoraPart)[QUERY]
    union.train_only([BlockId("adalora")])
    assert float(part.penalty().detach()) == pytest.approx(0, abs=1e-9)
    filled(part)
    off = [m.T @ m - torch.eye(4) for m in (part.left.detach(), part.right.detach().T)]
    assert float(part.penalty().detach()) == pytest.approx(0.5 * sum(float(o.square().sum()) for o in off), rel=1e-4)
    union.train_only(())
    assert part.penalty() is None


def test_adaloras_score_is_the_papers_importance_relative_to_the_largest():
    union = attach(tiny_bert(), Adapter(adalora=AdaLora(rank=3)), seed=0)
    union.train_only([BlockId("adalora"), BlockId("adalora.score")])
    parts = list(grafts_of(union.model, AdaLoraPart).values())
    draw = np.random.Generator(np.random.Philox(0))
    history = {id(p): [] for p in parts}
    for _ in range(3):
        for part in parts:
            for weight in (part.values, part.left, part.right):
                weight.data = torch.from_numpy(draw.standard_normal(tuple(weight.shape)).astype(np.float32))
                weight.grad = torch.from_numpy(draw.standard_normal(tuple(weight.shape)).astype(np.float32))
            step = [(w * w.grad).abs().detach().numpy() for w in (part.values, part.left, part.right)]
            history[id(part)].append(step)
            part.after_backward()

    def importance(steps):  # Zhang 2023, equations 8 to 10
        total = np.zeros(3)
        for index, axis in ((0, None), (1, 0), (2, 1)):
            sensitivity = uncertainty = 0.0
            for step in steps:
                sensitivity = 0.85 * sensitivity + 0.15 * step[index]
                uncertainty = 0.85 * uncertainty + 0.15 * abs(step[index] - sensitivity)
            product = sensitivity * uncertainty
            total += product if axis is None else product.mean(axis=axis)
        return total

    expected = [importance(history[id(part)]) for part in parts]
    largest = max(float(one.max()) for one in expected)
    with torch.no_grad():
        AdaLoraPart.finish(parts)
    for part, value in zip(parts, expected, strict=True):
        assert np.allclose(part.score.numpy(force=True), 0.5 * value / largest, atol=1e-5)
