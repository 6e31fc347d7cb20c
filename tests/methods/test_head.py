"""The class head as a block: the values of the model's own parameters."""

import numpy as np
import pytest

from fedpeft.config.model import Adapter, Lora
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch


def test_the_block_holds_the_classifiers_values():
    union = attach(tiny_bert(), Adapter(), seed=0)
    classifier = tiny_bert().classifier
    expected = np.concatenate([classifier.weight.detach().numpy().ravel(), classifier.bias.detach().numpy()])
    assert np.array_equal(union.initial_state()[BlockId("head")], expected)


def test_loading_a_head_never_writes_the_tensor_of_another_replica():
    union = attach(tiny_bert(), Adapter(), seed=0)
    replica = union.replicate()
    replica.load(union.initial_state().replace({BlockId("head"): np.ones(3 * 33, np.float32)}))
    assert union.state().digests == union.initial_state().digests


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_there_is_no_head_block_when_it_is_off_or_the_model_has_none(build):
    union = attach(build(), Adapter(lora=Lora(), head=build is tiny_llama), seed=0)
    assert "head" not in [block.block_id for block in union.spec.blocks]
