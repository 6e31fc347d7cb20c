"""Bottleneck adapters: the formula of each placement, identity at the start, the papers' counts."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.model import Adapter, Bottleneck, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.methods.bottleneck import BottleneckPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2]])
PLACEMENTS = pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])


def adapter_of(placement: str, **rest) -> Adapter:
    if placement == "parallel":
        return Adapter(parallel=Parallel(width=4, **({"scale": 1.0} | rest)), head=False)
    return Adapter(bottleneck=Bottleneck(width=4, placement=placement, **rest), head=False)


BOTH = pytest.mark.parametrize("build", [tiny_bert, tiny_llama])


def disturbed(model: nn.Module) -> dict[str, BottleneckPart]:
    parts = grafts_of(model, BottleneckPart)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in parts.values():
            for parameter in part.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return parts


def formula(part: BottleneckPart, h: torch.Tensor, settings: Bottleneck | Parallel) -> torch.Tensor:
    act = torch.relu if settings.activation == "relu" else functional.gelu
    return settings.scale * (act(h @ part.down.T + part.down_bias) @ part.up.T + part.up_bias)


class Serial(nn.Module):
    def __init__(self, linear, part, settings):
        super().__init__()
        self.linear, self.part, self.settings = linear, part, settings

    def forward(self, x):
        y = self.linear(x)
        return y + formula(self.part, y, self.settings)


class BesideLlama(nn.Module):
    def __init__(self, mlp, part, settings):
        super().__init__()
        self.mlp, self.part, self.settings = mlp, part, settings

    def forward(self, x):
        return self.mlp(x) + formula(self.part, x, self.settings)


class BesideBert(nn.Module):
    def __init__(self, output, part, settings):
        super().__init__()
        self.output, self.part, self.settings = output, part, settings

    def forward(self, inner, x):
        return self.output.LayerNorm(self.output.dense(inner) + formula(self.part, x, self.settings) + x)


@BOTH
@PLACEMENTS
@pytest.mark.parametrize("rest", [{}, {"activation": "gelu", "scale": 4.0}])
def test_the_model_computes_the_papers_formula(build, placement, rest):
    adapter = adapter_of(placement, **rest)
    settings = adapter.parallel or adapter.bottleneck
    union, plain = attach(build(), adapter, seed=0), build()
    beside = BesideBert if build is tiny_bert else BesideLlama
    wrap = beside if placement == "parallel" else Serial
    for path, part in disturbed(union.model).items():
        plain.set_submodule(path, wrap(plain.get_submodule(path), copy.deepcopy(part), settings))
    with torch.no_grad():
        assert torch.allclose(union.model(IDS).logits, plain(IDS).logits, atol=1e-4)
        assert not torch.allclose(union.model(IDS).logits, build()(IDS).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("build", "placement", "hosts"),
    [
        (tiny_bert, "houlsby", {"attention.output.dense", "output.dense"}),
        (tiny_bert, "pfeiffer", {"output.dense"}),
        (tiny_bert, "parallel", {"output"}),
        (tiny_llama, "houlsby", {"self_attn.o_proj", "mlp.down_proj"}),
        (tiny_llama, "pfeiffer", {"mlp.down_proj"}),
        (tiny_llama, "parallel", {"mlp"}),
    ],
)
def test_each_placement_sits_where_its_paper_puts_it(build, placement, hosts):
    union = attach(build(), adapter_of(placement).model_copy(update={"layers": 1}), seed=0)
    layer = f"{union.anatomy.layer_paths[2]}."
    assert set(grafts_of(union.model, BottleneckPart)) == {layer + host for host in hosts}


@BOTH
@pytest.mark.parametrize(("placement", "a_layer"), [("houlsby", 2), ("pfeiffer", 1), ("parallel", 1)])
@pytest.mark.parametrize("width", [1, 4, 32])
def test_parameters_are_two_matrices_and_two_biases_a_bottleneck(build, placement, a_layer, width):
    section = "parallel" if placement == "parallel" else "bottleneck"
    own = {"width": width} | ({} if placement == "parallel" else {"placement": placement})
    adapter = Adapter.model_validate({section: own, "head": False})
    (block,) = attach(build(layers=3), adapter, seed=0).spec.blocks
    assert block.size == 3 * a_layer * (2 * 32 * width + width + 32)


def test_every_bottleneck_draws_its_own_rows_of_norm_one_on_average():
    downs = [
        p.down
        for p in grafts_of(attach(tiny_bert(), Adapter(bottleneck=Bottleneck()), seed=0).model, BottleneckPart).values()
    ]
    assert len({tuple(down.flatten().tolist()) for down in downs}) == len(downs) == 6
    assert 0.9 < float(torch.cat(downs).norm(dim=1).mean()) < 1.1


def test_the_bottleneck_reads_what_lora_made_of_the_output():
    adapter = Adapter(bottleneck=Bottleneck(width=4), lora=Lora(rank=4, targets=("down",)))
    union = attach(tiny_bert(), adapter, seed=0)
    path = "bert.encoder.layer.1.output.dense"
    part, host = disturbed(union.model)[path], union.model.get_submodule(path)
    x = torch.randn((2, 5, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        union.parameters(BlockId("lora.B.t4"))[f"{path}.fedpeft.lora.B.t4"].fill_(0.2)
        lora = host.fedpeft["lora"]
        y = lora(x, functional.linear(x, host.weight, host.bias))
        assert torch.allclose(host(x), y + formula(part, y, Bottleneck()), atol=1e-5)


def test_a_bottleneck_wider_than_the_model_is_refused():
    with pytest.raises(ConfigInvalid, match="at most 32"):
        attach(tiny_bert(), Adapter(bottleneck=Bottleneck(width=33)), seed=0)


@PLACEMENTS
def test_dropout_leaves_units_out_in_training_steps_only(placement):
    union = attach(tiny_bert(), adapter_of(placement, dropout=0.25), seed=0)
    parts = disturbed(union.model)
    part = next(iter(parts.values()))
    whole = part.applied_up().detach().clone()
    with torch.no_grad():
        before = union.model(input_ids=IDS).logits
        part.begin_step(0, 0)
        assert torch.equal(part.applied_up(), whole)  # not trained: nothing is drawn
        union.train_only([block.block_id for block in union.spec.blocks])
        left = []
        for step in range(200):
            part.begin_step(0, step)
            seen = part.applied_up().abs().sum(dim=0) > 0  # (m,)
            assert torch.allclose(part.applied_up()[:, seen], whole[:, seen] / 0.75)
            left.append(int(seen.sum()))
        part.after_backward()
        assert torch.equal(union.model(input_ids=IDS).logits, before)
    assert 2.6 < sum(left) / len(left) < 3.4  # three of four, on average
    assert len(set(left)) > 1


@PLACEMENTS
def test_without_dropout_there_is_nothing_to_draw(placement):
    parts = disturbed(attach(tiny_bert(), adapter_of(placement), seed=0).model).values()
    assert {type(part) for part in parts} == {BottleneckPart}
