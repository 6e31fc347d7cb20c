"""LoRAHub: the mixture of states, the search, and that it finds what a new task needs."""

import numpy as np
import pytest

from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import SpecMismatch
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import evaluate, train
from fedpeft.tuning.lorahub import find_mixture, mixed, search

pytestmark = pytest.mark.torch

ADAPTER = Adapter(lora=Lora(rank=4))


def trained(examples, *, seed: int = 0):
    union = attach(tiny_bert(), ADAPTER, seed=seed)
    train(union, examples, plan_for(trainable(union), steps=25, rate=2e-2, batch_size=12), seed=0)
    return union.state()


def test_a_mixture_adds_the_changes_up_and_one_of_weight_one_is_the_adapter_itself():
    union = attach(tiny_bert(), ADAPTER, seed=0)
    start = union.initial_state()
    first, second = (start.replace({b: v + k for b, v in start.items() if "B" in b or b == "head"}) for k in (1, 3))
    assert mixed(start, [first, second], np.array([0.0, 1.0])).digests == second.digests
    found = mixed(start, [first, second], np.array([0.5, -1.0]))
    assert np.allclose(found["head"] - start["head"], 0.5 - 3.0, atol=1e-6)
    assert found.digests["lora.A.t2"] == start.digests["lora.A.t2"]


def test_adapters_without_a_common_start_are_refused():
    start = attach(tiny_bert(), ADAPTER, seed=0).initial_state()
    other = attach(tiny_bert(), ADAPTER, seed=1).initial_state()
    with pytest.raises(SpecMismatch, match=r"one run\.seed"):
        mixed(start, [other], np.ones(1))


def test_the_search_finds_the_bottom_of_a_bowl_in_few_tries():
    bottom, tried = np.array([0.7, -0.3, 1.1]), []

    def score(weights):
        tried.append(weights)
        return float(np.square(weights - bottom).sum())

    draw = np.random.Generator(np.random.Philox(0))
    best = search(score, [np.zeros(3)], draw=draw, tries=150)
    assert len(tried) == 150
    assert np.allclose(best, bottom, atol=0.05)
    assert max(np.abs(weights).max() for weights in tried) <= 1.5


def test_the_mixture_is_no_worse_on_the_examples_than_the_best_adapter_and_stays_in_the_model():
    few = class_examples(24, seed=5)
    states = [trained(class_examples(24, seed=5)), trained(class_examples(24, seed=9))]
    union = attach(tiny_bert(), ADAPTER, seed=0)
    draw = np.random.Generator(np.random.Philox(0))
    found = find_mixture(union, union.initial_state(), states, few, draw=draw, tries=20, penalty=0.0)
    assert found.loss <= min(found.single_losses)
    assert found.single_losses[1] < found.single_losses[0]
    assert found.tries == 20
    measured = evaluate(union, few, limit=0, batch_size=32)
    assert measured.loss_sum / measured.examples == pytest.approx(found.loss)
