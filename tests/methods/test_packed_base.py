"""Adapters on a base whose weights stay packed: the same numbers as on the dense base, the same sharing."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedpeft.base.quantize import quantize
from fedpeft.base.residency import PackedWeight, QuantizedLinear
from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert, tiny_llama
from fedpeft.testing.plans import trainable

pytestmark = pytest.mark.torch

BATCH = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
CASES = pytest.mark.parametrize(
    ("build", "adapter"),
    [
        (tiny_bert, Adapter(lora=Lora(rank=4, targets=("q", "v", "down")), bitfit=BitFit(), ia3=Ia3())),
        (tiny_llama, Adapter(lora=Lora(rank=4, targets=("q", "v", "gate")), ia3=Ia3())),
        (tiny_bert, Adapter(layernorm=LayerNorm(), bottleneck=Bottleneck(width=4))),
        (tiny_llama, Adapter(layernorm=LayerNorm(), parallel=Parallel(width=4))),
    ],
    ids=["encoder", "decoder", "encoder additive", "decoder additive"],
)


def packed_and_dense(build, encoding):
    """A model with packed linear layers, and one with the same weights unpacked once."""
    packed, dense = build(), build()
    for path, module in list(packed.named_modules()):
        if type(module) is nn.Linear and path not in ("classifier", "lm_head"):
            weight = PackedWeight(quantize(module.weight, encoding), encoding, tuple(module.weight.shape))
            packed.set_submodule(path, QuantizedLinear(weight, module.bias))
            dense.get_submodule(path).weight.data.copy_(weight.unpack())
    return packed, dense


@CASES
@pytest.mark.parametrize("encoding", ["int8", "nf4", "int4-g32"])
def test_logits_and_gradients_are_those_on_the_dense_base(build, adapter, encoding):
    found = []
    for model in packed_and_dense(build, encoding):
        union = attach(model, adapter, seed=0)
        blocks = trainable(union)
        union.train_only(blocks)
        logits = union.model(**BATCH).logits
        functional.cross_entropy(
            logits.flatten(0, -2), torch.zeros(logits[..., 0].numel(), dtype=torch.long)
        ).backward()
        gradients = [p.grad for block in blocks for p in union.parameters(block).values()]
        found.append((logits.detach(), torch.cat([g.flatten() for g in gradients])))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert float(found[0][1].norm()) > 0


@CASES
def test_a_replica_shares_the_packed_weights(build, adapter):
    packed, _ = packed_and_dense(build, "int8")
    union = attach(packed, adapter, seed=0)
    replica = union.replicate()
    pairs = zip(union.model.modules(), replica.model.modules(), strict=True)
    weights = [(a.packed, b.packed) for a, b in pairs if isinstance(a, QuantizedLinear)]
    assert weights
    assert all(ours is theirs for ours, theirs in weights)
    assert replica.state().digests == union.state().digests
