"""What every additive and prompt method owes, on encoder and decoder, on a dense and on a packed base."""

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.config.model import Adapter
from fedpeft.methods import UnionAdapter, attach
from fedpeft.testing.methods import on_base
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import evaluate, train

pytestmark = pytest.mark.torch

INPUTS = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
METHODS = {
    "prompt": {"length": 5},
    "p_tuning": {"length": 5, "width": 8},
    "prefix": {"length": 5, "width": 8},
    "p_tuning_v2": {"length": 5},
    "llama_adapter": {"length": 5},
    "bottleneck": {"width": 4},
    "parallel": {"width": 4},
    "compacter": {"width": 8, "terms": 4, "rank": 2},
    "hypernetwork": {"width": 4, "embedding": 6},
    "unipelt": {"rank": 2, "length": 5, "width": 4},
    "coda": {"width": 4, "capacity": 0.6},
}
STARTS_AS_THE_BASE = {"llama_adapter", "bottleneck", "parallel", "compacter", "hypernetwork"}
BUILDS = {"encoder": tiny_bert, "decoder": tiny_llama}
BOTH = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
EACH = pytest.mark.parametrize("method", METHODS)


def adapter_of(method: str, **rest: object) -> Adapter:
    return Adapter.model_validate({method: METHODS[method], "head": False, **rest})


def trained(union: UnionAdapter, examples, *, steps: int = 6, progress=None):
    return train(union, examples, plan_for(trainable(union), steps=steps, rate=1e-2), seed=0, progress=progress)


def disturbed(union: UnionAdapter) -> AdapterState:
    draw = np.random.Generator(np.random.Philox(1))
    start = union.initial_state()
    return AdapterState(
        start.spec, {b: (v + 0.3 * draw.standard_normal(v.shape)).astype(np.float32) for b, v in start.items()}
    )


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    output: torch.Tensor = model(**INPUTS).logits
    return output


@EACH
@BOTH
def test_the_adapted_model_starts_where_the_method_promises(build, method):
    found = torch.equal(logits(attach(build(), adapter_of(method), seed=0).model), logits(build()))
    assert found == (method in STARTS_AS_THE_BASE)


ONE_A_METHOD = pytest.mark.drawn(1, each=("method",), always=lambda method, **_: method == "bottleneck")
"""Models and bases differ in where a method is grafted and how a matrix is unpacked: one method sees them all."""


@ONE_A_METHOD
@EACH
@BOTH
@pytest.mark.parametrize("encoding", ["plain", "int8", "nf4"])
def test_training_moves_every_trainable_parameter_and_no_frozen_one(build, method, encoding):
    union = attach(on_base(build, encoding), adapter_of(method), seed=0)
    before = {name: parameter.detach().clone() for name, parameter in union.model.named_parameters()}
    own = {t.name for block in union.spec.blocks if block.trainable for t in block.tensors}
    examples = examples_for(build, 24)
    start = evaluate(union, examples, limit=0, batch_size=8).loss_sum
    trained(union, examples)
    assert evaluate(union, examples, limit=0, batch_size=8).loss_sum < start
    for name, parameter in union.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in own), name


@ONE_A_METHOD
@EACH
@BOTH
def test_evaluating_between_the_steps_changes_nothing(build, method):
    examples, states = examples_for(build, 24), []
    for evaluates in (True, False):
        union = attach(build(), adapter_of(method), seed=0)
        watch = lambda *_, union=union: evaluate(union, examples, limit=8, batch_size=8)  # noqa: E731
        trained(union, examples, steps=3, progress=watch if evaluates else None)
        states.append(union.state())
    assert states[0].digests == states[1].digests


@EACH
@BOTH
def test_the_bytes_of_a_state_bring_the_logits_back(build, method):
    union = attach(build(), adapter_of(method), seed=0)
    union.load(disturbed(union))
    again = attach(build(), adapter_of(method), seed=1)
    again.load(AdapterState.from_safetensors(again.spec, union.state().to_safetensors()))
    assert torch.equal(logits(again.model), logits(union.model))
    assert not torch.allclose(logits(build()), logits(union.model), atol=1e-3)


@EACH
@BOTH
def test_a_replica_computes_with_its_own_tensors(build, method):
    union = attach(build(), adapter_of(method), seed=0)
    before, replica = logits(union.model), union.replicate()
    replica.load(disturbed(union))
    assert torch.equal(logits(union.model), before)
    assert not torch.allclose(logits(replica.model), before, atol=1e-3)


@EACH
@BOTH
def test_padding_does_not_reach_the_other_tokens(build, method):
    union = attach(build(), adapter_of(method), seed=0)
    union.load(disturbed(union))
    with torch.no_grad():
        alone = union.model(input_ids=INPUTS["input_ids"][1:, :3]).logits
    beside = logits(union.model)[1:]
    assert torch.allclose(alone, beside if build is tiny_bert else beside[:, :3], atol=1e-5)


@EACH
def test_a_decoder_does_not_see_what_follows(method):
    union = attach(tiny_llama(), adapter_of(method), seed=0)
    union.load(disturbed(union))
    ids = torch.tensor([[5, 9, 17, 33, 2, 4, 8]])
    changed = ids.clone()
    changed[:, 4:] += 11
    with torch.no_grad():
        first, second = union.model(input_ids=ids).logits, union.model(input_ids=changed).logits
    assert torch.allclose(first[:, :4], second[:, :4], atol=1e-5)
    assert not torch.allclose(first[:, 4:], second[:, 4:], atol=1e-2)
