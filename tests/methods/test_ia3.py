"""IA3: gains on keys, values and the MLP's inner activation."""

import pytest
import torch

from fedpeft.config.model import Adapter, Ia3
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.ia3 import InputGain, OutputGain
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("build", "down"), [(tiny_bert, "output.dense"), (tiny_llama, "mlp.down_proj")])
def test_gains_equal_rescaling_the_weights(build, down):
    ids = torch.tensor([[5, 9, 17, 33, 2]])
    union, plain = attach(build(), Adapter(ia3=Ia3()), seed=0), build()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, gain in grafts_of(union.model, OutputGain).items():
            gain.delta.copy_(0.3 * torch.randn(gain.delta.shape, generator=draw))
            host = plain.get_submodule(path)
            host.weight.mul_(1 + gain.delta[:, None])
            if host.bias is not None:
                host.bias.mul_(1 + gain.delta)
        for path, gain in grafts_of(union.model, InputGain).items():
            assert path.endswith(down)
            gain.delta.copy_(0.3 * torch.randn(gain.delta.shape, generator=draw))
            plain.get_submodule(path).weight.mul_(1 + gain.delta)
        assert torch.allclose(union.model(ids).logits, plain(ids).logits, atol=1e-5)


@pytest.mark.parametrize(("build", "per_layer"), [(tiny_bert, 32 + 32 + 64), (tiny_llama, 16 + 16 + 64)])
def test_parameters_are_the_widths_of_key_value_and_inner_activation(build, per_layer):
    union = attach(build(layers=3), Adapter(ia3=Ia3(), head=False), seed=0)
    (block,) = union.spec.blocks
    assert block.size == 3 * per_layer
