"""DoRA: the paper's formula, peft's logits and gradients, and a norm that needs no dense matrix."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from fedpeft.config.model import Adapter, Dora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.methods.dora import DoraPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

INPUTS = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
BOTH = pytest.mark.parametrize(
    ("build", "names"), [(tiny_bert, ["query", "value"]), (tiny_llama, ["q_proj", "v_proj"])], ids=["bert", "llama"]
)


def disturbed(union):
    draw = torch.Generator().manual_seed(0)
    parts = grafts_of(union.model, DoraPart)
    with torch.no_grad():
        for part in parts.values():
            for parameter in (part.B, part.delta):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return parts


@BOTH
def test_logits_and_gradients_are_those_of_peft(build, names):
    union = attach(build(), Adapter(dora=Dora(rank=4, scale=1.5), head=False), seed=0)
    parts = disturbed(union)
    settings = LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=names, lora_dropout=0.0)
    theirs = get_peft_model(build(), settings)
    hosts = {path: theirs.base_model.model.get_submodule(path) for path in parts}
    with torch.no_grad():
        for path, part in parts.items():
            hosts[path].lora_A["default"].weight.copy_(part.A)
            hosts[path].lora_B["default"].weight.copy_(part.B)
            hosts[path].lora_magnitude_vector["default"].weight.copy_(part.magnitude())
    union.train_only([BlockId("dora")])
    found = [model(**INPUTS).logits for model in (union.model, theirs)]
    assert torch.allclose(*found, atol=1e-5)
    for logits in found:
        functional.log_softmax(logits, -1)[..., 0].sum().backward()
    for path, part in parts.items():
        assert torch.allclose(part.B.grad, hosts[path].lora_B["default"].weight.grad, rtol=1e-3, atol=1e-5)
        expected = hosts[path].lora_magnitude_vector["default"].weight.grad
        assert torch.allclose(part.delta.grad, expected, rtol=1e-3, atol=1e-5)


def test_the_norm_is_that_of_the_dense_matrix_also_after_a_is_replaced():
    union = attach(tiny_bert(), Adapter(dora=Dora(rank=4, scale=1.5)), seed=0)
    for path, part in disturbed(union).items():
        weight = union.model.get_submodule(path).weight
        for _ in range(2):
            expected = (weight + 1.5 * part.B @ part.A).norm(dim=1)
            assert torch.allclose(part.norm(), expected, rtol=1e-5)
            with torch.no_grad():
                part.A.mul_(3.0)


@pytest.mark.parametrize(("build", "rows"), [(tiny_bert, 32 + 32), (tiny_llama, 32 + 16)])
def test_parameters_are_a_column_a_rank_and_one_magnitude_a_row(build, rows):
    spec = attach(build(layers=3), Adapter(dora=Dora(rank=4), head=False), seed=0).spec
    assert spec[BlockId("dora")].size == 3 * (4 + 1) * rows
    assert not spec[BlockId("dora.A")].trainable


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(ConfigInvalid, match="at most 32"):
        attach(tiny_bert(), Adapter(dora=Dora(rank=64)), seed=0)
