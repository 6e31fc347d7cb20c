"""A round of the real engine over real models: what is opened is the mean of what the devices trained.

Three devices, since a sum of two is no secret between them.
"""

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.config.model import Adapter, Rounds
from fedpeft.ids import BlockId
from fedpeft.methods import attach
from fedpeft.round.coordinator import run_round
from fedpeft.round.local import Effort, LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol, exact_terms, toy_task
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.testing.trainers import toy_plan
from fedpeft.tuning import train

pytestmark = pytest.mark.torch

METHODS = {
    "prompt": {"length": 3},
    "p_tuning": {"length": 3, "width": 4},
    "prefix": {"length": 3, "width": 4},
    "p_tuning_v2": {"length": 3},
    "llama_adapter": {"length": 3},
    "bottleneck": {"width": 2},
    "parallel": {"width": 2},
    "compacter": {"width": 4},
    "hypernetwork": {"width": 2, "embedding": 4},
    "unipelt": {"rank": 2, "length": 3, "width": 2},
    "coda": {"width": 2},
}


class ModelTrainer:
    """``Trainer`` of a tiny model on examples of its own; remembers what it found."""

    methods = "all"

    def __init__(self, build, adapter: Adapter, seed: int) -> None:
        self._union = attach(build(layers=2), adapter, seed=0)
        self._examples, self._seed = examples_for(build, 16, seed=seed), seed
        self.found: dict[BlockId, np.ndarray] = {}

    def initial_state(self) -> AdapterState:
        return self._union.initial_state()

    def first_state(self, plan: LearningPlan) -> AdapterState:
        return self._union.initial_state()

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        return self._union.spec

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        return frozenset(trainable(self._union))

    def size_class(self, plan: LearningPlan) -> int:
        return 0

    def evaluates(self, plan: LearningPlan) -> bool:
        return False

    def cost(self, plan: LearningPlan) -> None:
        return None

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        self._union.load(state)
        blocks = sorted(self.trains(plan))
        local = plan_for(blocks, steps=2, rate=0.1, optimizer="sgd")
        outcome = train(self._union, self._examples, local, seed=self._seed)
        after = self._union.extract(blocks)
        self.found = {block: after[block] - state[block] for block in blocks}
        return LocalResult(
            deltas=self.found,
            trained_loss=outcome.mean_loss * outcome.examples_seen,
            trained=outcome.examples_seen,
            evaluated_loss=0.0,
            correct=0,
            evaluated=0,
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama], ids=["encoder", "decoder"])
def test_a_round_opens_the_mean_of_what_the_devices_trained(method, build):
    adapter = Adapter.model_validate({method: METHODS[method]})
    trainers = {f"d{seed}": ModelTrainer(build, adapter, seed) for seed in range(3)}
    start = trainers["d0"].initial_state()
    fleet = enrol(trainers)
    outcome = run_round(
        toy_task(toy_plan(start.spec, secagg=exact_terms(3)), state=start),
        start,
        fleet.members(),
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
    )
    assert isinstance(outcome.result, secagg.Summed), outcome.result
    sums = {block: outcome.result.sums[block].values for block in trainers["d0"].found}
    for block in trainers["d0"].found:
        deltas = np.stack([trainer.found[block] for trainer in trainers.values()]).astype(np.float64)
        assert np.abs(deltas).max() > 0
        assert np.allclose(sums[block] / 3.0, deltas.mean(axis=0), atol=2e-6)
    assert {block.method for block in start.spec.blocks if block.block_id in sums} >= {method}
