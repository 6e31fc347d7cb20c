"""A language model's loss without its logits is the loss with them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedpeft.base.quantize import quantize
from fedpeft.base.residency import PackedWeight, QuantizedLinear
from fedpeft.config.model import Adapter, Ia3, Lora
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert, tiny_llama, token_examples
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import token_loss, train
from fedpeft.tuning.objective import Objective
from fedpeft.tuning.token_loss import OutputMatrix, output_withheld

pytestmark = pytest.mark.torch

ADAPTER = Adapter(lora=Lora(rank=4), ia3=Ia3())


def gradients(union, examples, *, micro_batch=0):
    """Loss and gradients of one step of eight examples."""
    union.train_only(trainable(union))
    objective = Objective(union, examples, cache=None, logit_offset=None, micro_batch=micro_batch, checkpointing=False)
    loss = objective.backward(np.arange(8))
    found = {name: p.grad.clone() for name, p in union.model.named_parameters() if p.grad is not None}
    union.train_only(())
    return loss, found


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient_are_those_of_cross_entropy_however_it_is_cut(rows, bias, monkeypatch):
    monkeypatch.setattr(token_loss, "CHUNK_BYTES", 4 * 120 * rows)
    draw = torch.Generator().manual_seed(0)
    output = nn.Linear(32, 120, bias=bias).requires_grad_(False)
    states = torch.randn(23, 32, generator=draw, requires_grad=True)
    again = states.detach().clone().requires_grad_()
    labels = torch.randint(0, 120, (23,), generator=draw)
    loss = OutputMatrix(output).loss(states, labels, count=40)
    expected = functional.cross_entropy(output(again), labels, reduction="sum") / 40
    (3 * loss).backward()
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(states.grad, again.grad, atol=1e-7)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_is_the_step_over_the_logits(micro_batch, monkeypatch):
    examples = token_examples(8)
    loss, found = gradients(attach(tiny_llama(), ADAPTER, seed=0), examples, micro_batch=micro_batch)
    monkeypatch.setattr(OutputMatrix, "was_last", lambda *_: False)
    expected_loss, expected = gradients(attach(tiny_llama(), ADAPTER, seed=0), examples, micro_batch=micro_batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)


def test_nothing_as_wide_as_the_vocabulary_is_kept_for_the_backward_pass():
    shapes = []

    def note(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gradients(attach(tiny_llama(), ADAPTER, seed=0), token_examples(8))
    assert shapes
    assert not [shape for shape in shapes if 120 in shape]


def test_a_model_that_changes_its_logits_afterwards_is_trained_on_the_changed_ones():
    examples = token_examples(8)
    plain, _ = gradients(attach(tiny_llama(), ADAPTER, seed=0), examples)
    model = tiny_llama()

    class Capped(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 0.5 * torch.tanh(output.logits)
            return output

    model.__class__ = Capped
    union = attach(model, ADAPTER, seed=0)
    loss, found = gradients(union, examples)
    # Logits within [-0.5, 0.5] over 120 words: the loss cannot be far from that of a uniform guess.
    assert abs(loss - torch.log(torch.tensor(120.0)).item()) < 1.0
    assert loss != pytest.approx(plain, rel=1e-3)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_the_models_own_output_matrix_is_back_afterwards_and_trains_again():
    union = attach(tiny_llama(), ADAPTER, seed=0)
    output = union.model.get_output_embeddings()
    plan = plan_for(trainable(union), steps=2, rate=0.1, batch_size=4, optimizer="sgd")
    first = train(union, token_examples(8), plan, seed=0)
    assert union.model.get_output_embeddings() is output
    second = train(union, token_examples(8), plan, seed=0)
    assert second.mean_loss < first.mean_loss


def test_a_packed_output_matrix_is_withheld_and_a_trained_one_or_a_class_head_is_not():
    model = tiny_llama()
    dense = model.get_output_embeddings().weight
    weight = PackedWeight(quantize(dense, "nf4"), "nf4", tuple(dense.shape))
    model.set_output_embeddings(QuantizedLinear(weight, None))
    with output_withheld(model) as withheld:
        assert isinstance(withheld, OutputMatrix)
    trained = tiny_llama()
    trained.get_output_embeddings().weight.requires_grad_()
    with output_withheld(trained) as withheld:
        assert withheld is None
    with output_withheld(tiny_bert()) as withheld:
        assert withheld is None
