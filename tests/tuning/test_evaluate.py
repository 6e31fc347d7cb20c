"""Evaluation: the sums are those of one plain pass, whatever the batches."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.config.model import Adapter, Lora
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.testing.plans import trainable
from fedpeft.tuning import evaluate

pytestmark = pytest.mark.torch


def test_a_classifiers_sums_are_those_of_one_example_at_a_time():
    union, examples = attach(tiny_bert(), Adapter(lora=Lora(rank=4)), seed=0), class_examples(40)
    result = evaluate(union, examples, limit=0, batch_size=16)
    loss, correct = 0.0, 0
    with torch.no_grad():
        for ids, label in zip(examples.input_ids, examples.labels, strict=True):
            logits = union.model(torch.from_numpy(ids)[None].long()).logits
            loss += float(functional.cross_entropy(logits, torch.tensor([label])))
            correct += int(logits.argmax()) == label
    assert result.loss_sum == pytest.approx(loss, rel=1e-5)
    assert (result.correct, result.examples) == (correct, 40)


def test_a_language_models_sums_are_over_labelled_tokens_each_predicted_from_those_before():
    union, examples = attach(tiny_llama(), Adapter(lora=Lora(rank=4)), seed=0), token_examples(20)
    result = evaluate(union, examples, limit=0, batch_size=8)
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
            rows = union.model(torch.from_numpy(ids)[None].long()).logits[0]
            for position in np.flatnonzero(labels >= 0):
                loss += float(functional.cross_entropy(rows[position - 1], torch.tensor(labels[position])))
                correct += int(rows[position - 1].argmax()) == labels[position]
                count += 1
    assert result.loss_sum == pytest.approx(loss, rel=1e-5)
    assert (result.correct, result.examples) == (correct, count)


def test_a_limit_takes_so_many_and_always_the_same():
    union, examples = attach(tiny_bert(), Adapter(), seed=0), class_examples(50)
    first = evaluate(union, examples, limit=20, batch_size=8)
    assert first.examples == 20
    assert evaluate(union, examples, limit=20, batch_size=8) == first
    assert evaluate(union, examples, limit=500, batch_size=8).examples == 50


def test_no_gradient_is_left_behind():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4)), seed=0)
    union.train_only(trainable(union))
    evaluate(union, class_examples(), limit=0, batch_size=8)
    assert all(parameter.grad is None for parameter in union.model.parameters())
