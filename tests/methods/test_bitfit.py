"""BitFit: a delta on every bias, and a clear refusal where there is none."""

import pytest
import torch

from fedpeft.config.model import Adapter, BitFit, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.bitfit import BiasPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch


def test_a_delta_on_every_bias_equals_changing_the_biases():
    ids = torch.tensor([[5, 9, 17, 33, 2]])
    union, plain = attach(tiny_bert(), Adapter(bitfit=BitFit()), seed=0), tiny_bert()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, part in grafts_of(union.model, BiasPart).items():
            part.delta.copy_(0.3 * torch.randn(part.delta.shape, generator=draw))
            plain.get_parameter(f"{path}.bias").add_(part.delta)
        assert torch.allclose(union.model(ids).logits, plain(ids).logits, atol=1e-5)


def test_parameters_are_all_biases_of_the_chosen_layers():
    union = attach(tiny_bert(layers=3), Adapter(bitfit=BitFit(), layers=2, head=False), seed=0)
    (block,) = union.spec.blocks
    expected = sum(
        p.numel() for i in (1, 2) for n, p in tiny_bert().bert.encoder.layer[i].named_parameters() if "bias" in n
    )
    assert block.size == expected == 2 * (4 * 32 + 64 + 32 + 2 * 32)


def test_a_model_without_biases_is_refused_with_the_alternatives():
    with pytest.raises(ConfigInvalid, match="Use lora, ia3, layernorm or bottleneck"):
        attach(tiny_llama(), Adapter(bitfit=BitFit()), seed=0)


def test_lora_adds_no_bias_for_bitfit_to_find():
    alone = attach(tiny_bert(), Adapter(bitfit=BitFit(), head=False), seed=0).spec.blocks[-1]
    beside = attach(tiny_bert(), Adapter(bitfit=BitFit(), lora=Lora(), head=False), seed=0).spec.blocks[-1]
    assert alone.tensors == beside.tensors
