"""Devices that come late, change their method or drop a tier between two rounds: real trainers, real secure sum.

Seven devices of three at least to a sum. Round 1: a to d train LoRA of rank 4, e and f train biases, too few for a sum.
Round 2: g has come, which makes biases' sum large enough, and b trains biases from now on. Round 3: c is short of
memory and stops at tier 2, so tier 4 has two owners left and is skipped.
"""

from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.base import ArtifactStore, build
from fedpeft.config import parse
from fedpeft.data import Records
from fedpeft.entropy import seeded_entropy
from fedpeft.ids import BlockId
from fedpeft.round.plan import learning_plan
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol
from fedpeft.testing.models import save_tiny, tiny_bert
from fedpeft.testing.network import FaultyTransport
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import last_state, read_run

pytestmark = pytest.mark.torch

SOURCE = """
[run]
name = "changing"
[base]
model = "pypi:tiny"
[task]
kind = "classify"
labels = ["bird", "cat", "dog"]
max_length = 16
[data]
source = "x.jsonl"
partition = {by = "iid", clients = 7}
[adapter]
layers = 1
lora = {rank = 4, tiers = [2, 4]}
bitfit = {}
[train]
local_steps = 2
batch_size = 4
learning_rate = 0.02
[aggregate]
weight = "uniform"
[secagg]
min_cohort = 3
max_abs = 2.0
[rounds]
count = 3
min_devices = 3
[[device]]
clients = ["*"]
methods = ["lora", "bitfit"]
"""
LABELS = ("bird", "cat", "dog")
TIER_2, TIER_4, BIASES, HEAD = map(BlockId, ("lora.B.t2", "lora.B.t4", "bitfit", "head"))


class Watched:
    """A trainer whose deltas a test may look at."""

    def __init__(self, trainer):
        self._trainer, self.deltas = trainer, {}

    def __getattr__(self, name):
        return getattr(self._trainer, name)

    def fit(self, plan, state, request, effort):
        result = self._trainer.fit(plan, state, request, effort)
        if request.train:
            self.deltas[len(self.deltas) + 1] = result.deltas
        return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The trainers by name, and the committed states, from the initial one on."""
    from fedpeft_client.training.choice import Capacity
    from fedpeft_client.training.examples import Examples
    from fedpeft_client.training.model_pool import ModelPool
    from fedpeft_client.training.trainer import TorchTrainer

    where: Path = tmp_path_factory.mktemp("changing")
    save_tiny(tiny_bert(), where / "tiny")
    artifact = build(str(where / "tiny"), quantize="nf4", store=where / "store")
    config = parse(SOURCE, source="run.toml", simulation=True).model_copy(update={"directory": where / "runs"})
    pool = ModelPool(ArtifactStore(where / "store"), residency="quantized")
    draft = learning_plan(config, run_id="", base=artifact.digest, adapter_spec="")
    initial = pool.initial_state(draft)
    lora, biases = Capacity(methods=("lora",)), Capacity(methods=("bitfit",))
    trainers = {}
    for name in "abcdefg":
        rows = Records.of(
            [{"text": f"{colour} {animal} {name}", "label": animal} for colour in ("red", "blue") for animal in LABELS],
            name=name,
        )
        examples = Examples(name, pool=pool, train=rows, held_out=rows, cache_mb=64)
        capacity = lora if name in "abcd" else biases
        trainers[name] = Watched(TorchTrainer(device=name, capacity=capacity, pool=pool, examples=examples))
    fleet, clock = enrol(trainers), FakeClock()
    network = FaultyTransport(fleet.handles, clock, ())
    late = fleet.nodes[6]
    handle = network.devices.pop(late)
    directory = RunDirectory.create(
        config,
        source=SOURCE,
        adapter=initial.spec,
        base_digest=artifact.digest,
        command=("fedpeft", "simulate"),
        clock=clock,
        entropy=seeded_entropy(0, "run id"),
    )
    states, commit = [initial], directory.commit

    def committing(round_id, *arguments):
        row = commit(round_id, *arguments)
        states.append(last_state(read_run(directory.path)))
        if round_id == 1:
            network.devices[late] = handle
            trainers["b"].change(biases)
        if round_id == 2:
            trainers["c"].change(Capacity(methods=("lora",), rank=2))
        return row

    directory.commit = committing
    plan = learning_plan(
        config, run_id=directory.manifest.run_id, base=artifact.digest, adapter_spec=initial.spec.digest
    )
    with directory:
        Federation(
            config,
            plan,
            directory,
            network,
            identity=fleet.coordinator,
            clock=clock,
            observe=lambda _: None,
            publish=lambda _slot, _state: None,
            entropy=fleet.entropy,
        ).train(initial)
    return {name: trainer.deltas for name, trainer in trainers.items()}, states


def moved(states: list[AdapterState], round_id: int) -> set[BlockId]:
    before, after = states[round_id - 1], states[round_id]
    return {block_id for block_id in before if not np.array_equal(before[block_id], after[block_id])}


def test_a_block_moves_in_the_rounds_in_which_enough_devices_train_it(run):
    _, states = run
    assert moved(states, 1) == {TIER_2, TIER_4, HEAD}
    assert moved(states, 2) == {TIER_2, TIER_4, HEAD, BIASES}
    assert moved(states, 3) == {TIER_2, HEAD, BIASES}


def test_each_device_trains_what_it_said_last_and_the_late_one_from_its_first_round(run):
    deltas, _ = run
    assert [set(of_round) - {HEAD} for of_round in deltas["b"].values()] == [{TIER_2, TIER_4}, {BIASES}, {BIASES}]
    assert [set(of_round) - {HEAD} for of_round in deltas["c"].values()] == [{TIER_2, TIER_4}] * 2 + [{TIER_2}]
    assert [set(of_round) - {HEAD} for of_round in deltas["g"].values()] == [{BIASES}] * 2


@pytest.mark.parametrize("round_id", [1, 2, 3])
def test_every_block_moves_by_its_owners_deltas_over_the_whole_cohort(run, round_id):
    deltas, states = run
    own_round = {name: round_id - (name == "g") for name in deltas}  # g's first round is the run's second
    here = {name: of[own_round[name]] for name, of in deltas.items() if own_round[name]}
    before, after = states[round_id - 1], states[round_id]
    for block_id in moved(states, round_id):
        total = sum(own[block_id].astype(np.float64) for own in here.values() if block_id in own)
        expected = before[block_id] + total / len(here)
        np.testing.assert_allclose(after[block_id], expected, atol=1e-6)
