"""LayerNorm tuning: the norms' gains, and their biases unless BitFit has them."""

import pytest
import torch
from torch import nn

from fedpeft.config.model import Adapter, BitFit, LayerNorm
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.methods.layernorm import NormPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2]])
ALONE = Adapter(layernorm=LayerNorm(), head=False)
BESIDE = Adapter(layernorm=LayerNorm(), bitfit=BitFit(), head=False)


@pytest.mark.parametrize(("build", "adapter"), [(tiny_bert, ALONE), (tiny_bert, BESIDE), (tiny_llama, ALONE)])
def test_deltas_equal_changing_the_norms(build, adapter):
    union, plain = attach(build(), adapter, seed=0), build()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, part in grafts_of(union.model, NormPart).items():
            for leaf, delta in (("weight", part.gain), ("bias", part.bias)):
                if delta is not None:
                    delta.copy_(0.3 * torch.randn(delta.shape, generator=draw))
                    plain.get_parameter(f"{path}.{leaf}").add_(delta)
        assert torch.allclose(union.model(IDS).logits, plain(IDS).logits, atol=1e-5)
        assert not torch.allclose(union.model(IDS).logits, build()(IDS).logits, atol=1e-2)


def test_gradients_are_those_of_changing_the_norms():
    union, plain = attach(tiny_bert(), ALONE, seed=0), tiny_bert()
    union.train_only([BlockId("layernorm")])
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("encoder" in name and "LayerNorm" in name)
    for model in (union.model, plain):
        model(IDS).logits.square().sum().backward()
    for path, part in grafts_of(union.model, NormPart).items():
        assert torch.allclose(part.gain.grad, plain.get_parameter(f"{path}.weight").grad, rtol=1e-4, atol=1e-5)
        assert torch.allclose(part.bias.grad, plain.get_parameter(f"{path}.bias").grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "adapter", "per_layer"),
    [(tiny_bert, ALONE, 2 * (32 + 32)), (tiny_bert, BESIDE, 2 * 32), (tiny_llama, ALONE, 2 * 32)],
)
def test_parameters_are_two_gains_a_layer_and_their_biases_where_they_are_not_bitfits(build, adapter, per_layer):
    union = attach(build(layers=3), adapter.model_copy(update={"layers": 2}), seed=0)
    assert union.spec[BlockId("layernorm")].size == 2 * per_layer


def test_a_norms_bias_belongs_to_one_block():
    beside, bitfit = (attach(tiny_bert(), a, seed=0) for a in (BESIDE, Adapter(bitfit=BitFit(), head=False)))
    assert beside.spec[BlockId("bitfit")] == bitfit.spec[BlockId("bitfit")]
    assert all(tensor.name.endswith(".gain") for tensor in beside.spec[BlockId("layernorm")].tensors)


def test_norms_outside_the_layers_are_left_alone():
    paths = grafts_of(attach(tiny_llama(), ALONE, seed=0).model, NormPart)
    assert {path.rpartition(".")[2] for path in paths} == {"input_layernorm", "post_attention_layernorm"}
    assert all(path.startswith("model.layers.") for path in paths)


def test_a_norm_of_another_kind_is_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

    model = tiny_bert()
    model.bert.encoder.layer[0].output.LayerNorm = Scale()
    with pytest.raises(ConfigInvalid, match="a LayerNorm or an RMSNorm, found Scale"):
        attach(model, ALONE, seed=0)
