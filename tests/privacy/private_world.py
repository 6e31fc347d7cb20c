"""A private run over the real secure sum, without torch: six devices, a run directory, a witness elsewhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fedpeft.adapter import AdapterState
from fedpeft.config import RunConfig, parse
from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import Budget, PrivacyLedger
from fedpeft.round.events import Event
from fedpeft.round.transport import Reply, Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol
from fedpeft.testing.network import Fault, FaultyTransport
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import GivenTrainer, toy_plan_of, toy_spec, toy_state
from fedpeft_server.privacy.client_level import LEDGER, ClientPrivacy
from fedpeft_server.privacy.noise_plan import trainable_parameters
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory

SOURCE = toy_run(
    """
[rounds]
count = 3
min_devices = 4
max_failures = 2
stage_deadline_s = 10.0
[aggregate]
weight = "uniform"
[secagg]
min_cohort = 4
[privacy]
unit = "client"
epsilon = 8.0
delta = 0.01
""",
    clients=6,
    name="private",
)
SPEC = toy_spec({"head": 40, "bitfit": 24})
INITIAL = toy_state(SPEC)
HEAD, BITFIT = BlockId("head"), BlockId("bitfit")


class Watched(FaultyTransport):
    """Notes how long the ledger is when each exchange begins."""

    ledger: Path
    charged: list[tuple[Stage, int]]

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        lines = self.ledger.read_bytes().count(b"\n") if self.ledger.exists() else 0
        self.charged.append((stage, lines))
        yield from super().exchange(stage, requests, deadline_s=deadline_s)


class World:
    """Six devices of which each pushes hard in its own direction, a run directory, a witness elsewhere."""

    def __init__(self, where: Path, *overrides: str, faults: tuple[Fault, ...] = ()) -> None:
        generator = np.random.default_rng(3)

        def deltas() -> dict[str, np.ndarray]:
            sizes = {"head": 40, "bitfit": 24}
            return {name: 100 * generator.normal(size=size).astype(np.float32) for name, size in sizes.items()}

        self.fleet = enrol({name: GivenTrainer(SPEC, deltas()) for name in "abcdef"})
        self.clock = FakeClock()
        config = parse(SOURCE, source="run.toml", overrides=overrides, simulation=True)
        self.config: RunConfig = config.model_copy(update={"directory": where})
        self.where, self.path, self.events = where, None, list[Event]()
        self.witness = where / "elsewhere" / "witness"
        self.network = Watched(self.fleet.handles, self.clock, faults)
        self.network.charged = []
        self.path: Path | None = None

    def train(self) -> AdapterState:
        run = self._run()
        self.path = run.path
        self.network.ledger = run.path / LEDGER
        parameters = trainable_parameters(SPEC)
        with (
            run,
            ClientPrivacy.open(self.config, parameters=parameters, run=run.path, witness=self.witness) as privacy,
        ):
            return Federation(
                self.config,
                toy_plan_of(self.config, SPEC).model_copy(update={"run_id": run.manifest.run_id}),
                run,
                self.network,
                identity=self.fleet.coordinator,
                clock=self.clock,
                observe=self.events.append,
                publish=lambda slot, state: None,
                entropy=self.fleet.entropy,
                privacy=privacy,
            ).train(INITIAL)

    def restart(self, *faults: Fault) -> None:
        for node in self.fleet.nodes:
            self.fleet.restart(node)
        charged = self.network.charged
        self.network = Watched(self.fleet.handles, self.clock, faults)
        self.network.charged = charged

    def ledger(self) -> PrivacyLedger:
        assert self.path is not None
        return PrivacyLedger(self.path / LEDGER, witness=self.witness, budget=Budget(epsilon=8.0, delta=0.01))

    def _run(self) -> RunDirectory:
        if self.path is not None:
            return RunDirectory.open(self.path, clock=self.clock)
        return RunDirectory.create(
            self.config,
            source=SOURCE,
            adapter=SPEC,
            base_digest="sha256:toy",
            command=("fedpeft",),
            clock=self.clock,
            entropy=os_entropy,
        )
