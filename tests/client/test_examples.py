"""Whose activations are kept: of every layer below the lowest that the run's adapter changes, and of no other."""

import numpy as np
import pytest

from fedpeft.base import ArtifactStore, build
from fedpeft.catalogue.lora import Lora
from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.model import Adapter, Aggregate, SecureAggregation, Task, Train
from fedpeft.data import Records
from fedpeft.methods import attach
from fedpeft.methods.union import anatomy_of
from fedpeft.planner import shape_of
from fedpeft.planner.placement import adapted_layers
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.testing.models import save_tiny, tiny_bert
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train

pytestmark = pytest.mark.torch

FROZEN = {
    "the head alone": (Adapter(), 3),
    "the top layer": (Adapter(lora=Lora(rank=2), layers=1), 2),
    "a hierarchy that begins in the middle": (
        Adapter(lora=Lora(rank=2, layers=(1, 1)), p_tuning_v2=PTuningV2(length=2, layers=(2, 2))),
        1,
    ),
    "one method everywhere, one above": (Adapter(lora=Lora(rank=2), p_tuning_v2=PTuningV2(length=2, layers=(2, 2))), 0),
    "all layers": (Adapter(lora=Lora(rank=2)), 0),
    "a prompt, below every layer": (Adapter(prompt=Prompt(length=2)), 0),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(), folder / "model")
    return ArtifactStore(folder / "store"), build(str(folder / "model"), quantize="nf4", store=folder / "store")


@pytest.fixture
def examples(base):
    from fedpeft_client.training.examples import Examples
    from fedpeft_client.training.model_pool import ModelPool

    rows = [{"text": f"the {c} {a}", "label": a} for a in ("cat", "dog", "bird") for c in ("red", "green", "blue")]
    records = Records.of(rows, name="rows")
    return Examples("a", pool=ModelPool(base[0]), train=records, held_out=records, cache_mb=1)


def plan(base, adapter: Adapter) -> LearningPlan:
    return LearningPlan(
        run_id="r",
        seed=0,
        base=base[1].digest,
        adapter_spec="0" * 64,
        task=Task(kind="classify", labels=("bird", "cat", "dog"), max_length=16),
        adapter=adapter,
        train=Train(batch_size=4),
        aggregate=Aggregate(),
        rounds=PlannedRounds(count=1, eval_examples=0),
        secagg=SecureAggregation(),
    )


@pytest.mark.parametrize(("adapter", "frozen"), FROZEN.values(), ids=FROZEN)
def test_trainer_cache_and_planner_agree_on_what_is_frozen(base, examples, adapter, frozen):
    prepared = examples.prepared(plan(base, adapter))
    assert (prepared.train_cache is not None, prepared.eval_cache is not None) == (frozen > 0, frozen > 0)
    assert attach(tiny_bert(), adapter, seed=0).anatomy.first_layer == frozen == adapter.lowest_layer(3)
    assert anatomy_of(tiny_bert(), adapter).first_layer == frozen
    assert 3 - adapted_layers(shape_of(base[1]), adapter) == frozen


@pytest.mark.parametrize("name", ["the head alone", "a hierarchy that begins in the middle"])
def test_a_second_pass_computes_no_frozen_layer_again_and_learns_the_same(base, examples, name):
    adapter, frozen = FROZEN[name]
    prepared = examples.prepared(plan(base, adapter))
    ends = []
    for cache in (None, prepared.train_cache):
        union = attach(tiny_bert(), adapter, seed=0)
        computed: list[int] = []
        for index in range(3):
            inner = union.anatomy.layer(index).get_submodule("attention.self.key")
            inner.register_forward_hook(lambda *_, index=index, seen=computed: seen.append(index))
        blocks = [b.block_id for b in union.spec.blocks if b.trainable]
        for first in (0, 9):  # three passes, then three more
            computed.clear()
            train(union, prepared.train, plan_for(blocks, steps=9, rate=0.01), seed=0, first_step=first, cache=cache)
        ends.append(union.state())
        below = [index for index in computed if index < frozen]
        assert {*computed} - {*below} == {*range(frozen, 3)}
        # With a cache one of them is called once in all nine steps: to see in what form layers return their output.
        assert len(below) <= 1 if cache is not None else {*below} == {*range(frozen)}
    for block in ends[0]:
        assert np.allclose(ends[0][block], ends[1][block], atol=1e-5)
