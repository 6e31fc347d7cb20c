"""The same attack as ``test_different_work`` on real models: tiny BERTs that train LoRA and a head."""

from dataclasses import replace

import pytest

from fedpeft.config.model import Adapter, Aggregate, Lora, SecureAggregation, Task, Train
from fedpeft.data import Records
from fedpeft.ids import NodeId
from fedpeft.round.messages import WorkTerms
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.secagg import Aborted, Summed
from fedpeft.testing.different_work import lied_to
from fedpeft.testing.fleet import enrol
from fedpeft.wire import decode, encode

pytestmark = pytest.mark.torch

NAMES, LABELS = ("a", "b", "c", "d"), ("bird", "cat", "dog")
VICTIM = NodeId(1000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A plan, its first state, and the trainers of four sites with texts of their own."""
    from fedpeft.base import ArtifactStore, build
    from fedpeft.testing.models import save_tiny, tiny_bert
    from fedpeft_client.training.choice import Capacity
    from fedpeft_client.training.examples import Examples
    from fedpeft_client.training.model_pool import ModelPool
    from fedpeft_client.training.trainer import TorchTrainer

    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(), folder / "model")
    artifact = build(str(folder / "model"), quantize="nf4", store=folder / "store")
    draft = LearningPlan(
        run_id="run",
        seed=0,
        base=artifact.digest,
        adapter_spec="",
        task=Task(kind="classify", labels=LABELS, max_length=16),
        adapter=Adapter(lora=Lora(rank=4)),
        train=Train(local_steps=2, batch_size=4, learning_rate=0.02),
        aggregate=Aggregate(),
        rounds=PlannedRounds(count=2, eval_examples=0),
        secagg=SecureAggregation(),
    )
    pool = ModelPool(ArtifactStore(folder / "store"), residency="quantized")
    state = pool.initial_state(draft)
    trainers = {}
    for name in NAMES:
        rows = Records.of([{"text": f"the {label} runs {name}", "label": label} for label in LABELS], name=name)
        examples = Examples(name, pool=pool, train=rows, held_out=rows, cache_mb=64)
        trainers[name] = TorchTrainer(device=name, capacity=Capacity(methods=("lora",)), pool=pool, examples=examples)
    return draft.model_copy(update={"adapter_spec": state.spec.digest}), state, trainers


def a_round(world, lie):
    plan, state, trainers = world
    return lied_to(enrol(trainers), plan, state, lie, victim=VICTIM)


def test_an_honest_round_of_real_models_is_summed(world) -> None:
    outcome = a_round(world, lambda request: request)
    assert isinstance(outcome.result, Summed)
    assert {"head", "lora.B.t4"} <= set(outcome.result.sums)


@pytest.mark.parametrize("change", [{"learning_rate_factor": 0.0}, {"train": False}, {"eval_examples": 1}])
def test_no_sum_is_opened_in_which_one_device_alone_was_asked_to_learn(world, change) -> None:
    def lie(request):
        return replace(request, work=encode(replace(decode(request.work, WorkTerms), **change)))

    outcome = a_round(world, lie)
    assert isinstance(outcome.result, Aborted)
    assert [name for name, account in outcome.traffic.items() if account.ready] == ["a"]
