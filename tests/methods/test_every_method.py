"""What every method that changes matrices, gains or biases must do: encoder and decoder, on dense and packed bases."""

import numpy as np
import pytest
import torch

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.methods import attach, due_blocks
from fedpeft.testing.methods import CASES, PAIRS, on_base, sizes_of
from fedpeft.testing.models import class_examples, examples_for, tiny_bert
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import evaluate, train

pytestmark = pytest.mark.torch

INPUTS = {
    "input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
METHODS = pytest.mark.parametrize("method", CASES)
ON_MODELS = pytest.mark.parametrize(("method", "build"), PAIRS)
STEPS = 4


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


def trained(union, examples, rounds=1, steps=STEPS, progress=None):
    """Rounds on one device alone, as a coordinator would have them; what was due moves, and nothing else."""
    for round_id in range(1, rounds + 1):
        due = due_blocks(union.spec, union.adapter, round_id)
        start = {name: parameter.detach().clone() for name, parameter in union.model.named_parameters()}
        plan = plan_for(due, steps=steps, rate=0.02)
        train(union, examples, plan, seed=0, first_step=(round_id - 1) * steps, progress=progress)
        moved = {name for name, parameter in union.model.named_parameters() if not torch.equal(parameter, start[name])}
        assert moved == {tensor.name for block in due for tensor in union.spec[block].tensors}
        union.load(between_rounds(union.state(), union.adapter, round_id))


PLACES = [(method, build, base) for method, build in PAIRS for base in ("plain", "int8", "nf4")]
ONE_A_METHOD = pytest.mark.drawn(1, each=("method",), always=lambda method, **_: method == "lora")
"""Models and bases differ in where a method is grafted and how a matrix is unpacked: LoRA sees them all."""


@ONE_A_METHOD
@pytest.mark.parametrize(("method", "build", "base"), PLACES)
def test_it_starts_as_the_base_and_training_moves_what_is_due_and_nothing_else(method, build, base):
    case, examples = CASES[method], examples_for(build, 24)
    before = logits(on_base(build, base))
    union = attach(on_base(build, base), case.adapter, seed=0)
    assert torch.equal(logits(union.model), before)
    first = evaluate(union, examples, limit=0, batch_size=16).loss_sum
    trained(union, examples, case.rounds, steps=8)
    assert evaluate(union, examples, limit=0, batch_size=16).loss_sum < first


@ONE_A_METHOD
@ON_MODELS
def test_bytes_bring_back_equal_logits(method, build):
    union = attach(build(), CASES[method].adapter, seed=0)
    trained(union, examples_for(build, 24), CASES[method].rounds)
    seed = 0 if method == "vera" else 1  # its projections are the run's seed's, and in no state
    again = attach(build(), CASES[method].adapter, seed=seed)
    again.load(AdapterState.from_safetensors(union.spec, union.state().to_safetensors()))
    assert torch.equal(logits(again.model), logits(union.model))
    assert not torch.allclose(logits(again.model), logits(build()), atol=1e-4)


@ON_MODELS
def test_it_has_as_many_trained_parameters_as_its_formula_says(method, build):
    spec = attach(build(), CASES[method].adapter, seed=0).spec
    found = sum(block.size for block in spec.blocks if block.trainable)
    assert found == CASES[method].size(sizes_of(build))


@ONE_A_METHOD
@ON_MODELS
def test_an_evaluation_between_two_steps_changes_nothing(method, build):
    examples, states = examples_for(build, 24), []
    for watched in (False, True):  # on a packed base, where bitsandbytes stops training after one evaluation
        union = attach(on_base(build, "nf4"), CASES[method].adapter, seed=0)

        def look(*_: object) -> None:
            evaluate(union, examples, limit=8, batch_size=8)  # noqa: B023 - called within this turn

        trained(union, examples, CASES[method].rounds, progress=look if watched else None)
        states.append(union.state())
    assert states[0].digests == states[1].digests


@METHODS
def test_the_same_arguments_train_the_same_bytes_and_another_device_trains_others(method):
    examples = class_examples(24)
    states = []
    for _ in range(2):
        union = attach(tiny_bert(), CASES[method].adapter, seed=0)
        trained(union, examples, CASES[method].rounds)
        states.append(union.state())
    assert states[0].digests == states[1].digests
    assert all(np.isfinite(values).all() for values in states[0].values())
