"""Every method through a real round: real base artifact, real devices, real secure sum, against the mean by hand.

Three clients, because the secure sum of two keeps no secret.
"""

import numpy as np
import pytest

from fedpeft.base import ArtifactStore, build
from fedpeft.config.model import Aggregate, Rounds, SecureAggregation, Task, Train
from fedpeft.data import Records
from fedpeft.ids import RoundId
from fedpeft.methods import due_blocks
from fedpeft.round.coordinator import run_round
from fedpeft.round.metrics import METRICS, TASK_METRICS, TRAIN_LOSS
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.round.task import RoundTask
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol, toy_task, toy_work
from fedpeft.testing.methods import CASES, PAIRS
from fedpeft.testing.models import save_tiny, tiny_bert, tiny_llama
from fedpeft.testing.network import InMemoryTransport

pytestmark = pytest.mark.torch

LABELS = ("bird", "cat", "dog")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One nf4 artifact a family, in one store."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for build_model in (tiny_bert, tiny_llama):
        save_tiny(build_model(), folder / build_model.__name__)
        found[build_model] = build(str(folder / build_model.__name__), quantize="nf4", store=folder / "store").digest
    return ArtifactStore(folder / "store"), found


def records(name: str, causal: bool) -> Records:
    rows = [
        {"prompt": f"the {animal} does ", "completion": f"{colour} {name}"}
        if causal
        else {"text": f"{colour} {animal} {name}", "label": animal}
        for colour in ("red", "green", "blue")
        for animal in LABELS
    ]
    return Records.of(rows, name=name)


@pytest.mark.drawn(1, each=("method",))  # the round does not see what a method is grafted on
@pytest.mark.parametrize(("method", "build_model"), PAIRS)
def test_the_sum_of_a_real_round_is_the_mean_by_hand(method, build_model, bases):
    from fedpeft_client.training.choice import Capacity
    from fedpeft_client.training.examples import Examples
    from fedpeft_client.training.model_pool import ModelPool
    from fedpeft_client.training.trainer import TorchTrainer

    store, digests = bases
    causal = build_model is tiny_llama
    draft = LearningPlan(
        run_id="run",
        seed=0,
        base=digests[build_model],
        adapter_spec="",
        task=Task(kind="causal-lm", max_length=16) if causal else Task(kind="classify", labels=LABELS, max_length=16),
        adapter=CASES[method].adapter,
        train=Train(local_steps=2, batch_size=4, learning_rate=0.02),
        aggregate=Aggregate(weight="uniform"),
        rounds=PlannedRounds(count=1, eval_examples=0),
        secagg=SecureAggregation(max_abs=2.0),
    )
    pool = ModelPool(store, residency="quantized")
    state = pool.initial_state(draft)
    plan = draft.model_copy(update={"adapter_spec": state.spec.digest})
    trainers = {}
    for name in NAMES:
        rows = records(name, causal)
        examples = Examples(name, pool=pool, train=rows, held_out=rows, cache_mb=64)
        capacity = Capacity(methods=(method,))
        trainers[name] = TorchTrainer(device=name, capacity=capacity, pool=pool, examples=examples)
    fleet = enrol(trainers)
    task: RoundTask = toy_task(plan, round_id=RoundId(1), state=state)
    outcome = run_round(
        task,
        state,
        fleet.members(),
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda _: None,
    )
    measured = (METRICS, TRAIN_LOSS, TASK_METRICS)
    sums = {block: part.values for block, part in outcome.result.sums.items() if block not in measured}
    assert set(sums) == due_blocks(state.spec, plan.adapter, 1)
    alone = [trainers[name].fit(plan, state, toy_work(plan, state.spec)).deltas for name in NAMES]
    for block, total in sums.items():
        expected = np.mean([deltas[block] for deltas in alone], axis=0)
        assert np.allclose(total / len(NAMES), expected, atol=1e-7), block
        assert np.abs(expected).max() > 1e-4
