"""The virtual devices of a simulation: real ``Device`` objects that share one base model.

On the local engine they live in this process and remember in RAM. On Ray each actor builds its own copy
on first use and the devices remember on disk, because their messages reach whichever actor is free.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedpeft import secagg
from fedpeft.base import ArtifactStore
from fedpeft.config import RunConfig
from fedpeft.data import EncodedDataset
from fedpeft.data.records import MAX_PROBLEMS
from fedpeft.data.remarks import answer_remark, unknown_remark
from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.errors import DataInvalid, Problem
from fedpeft.flower import NodeContext
from fedpeft.flower.pace import NotedTrainer
from fedpeft.privacy import Budget
from fedpeft.round.device.device import Device
from fedpeft.round.example_privacy import OpenLedger
from fedpeft.round.failures import log_trouble
from fedpeft.round.local import DeviceStore, Identity, SumSession, Trainer
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transport import Stage
from fedpeft_client.training.device_stores import FileStore, MemoryStore, device_ledger
from fedpeft_client.training.examples import Examples
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_client.training.trainer import TorchTrainer
from fedpeft_server.run.client_scores import ClientScores
from fedpeft_sim.plain_sum import PlainSession
from fedpeft_sim.planning import plan_devices
from fedpeft_sim.population import Population, populate
from fedpeft_sim.scored_trainer import ScoredTrainer
from fedpeft_sim.troubles import trouble_log

__all__ = ["Ledgers", "RayDevices", "VirtualDevices", "encode_all", "examples_of"]


@dataclass(frozen=True, kw_only=True)
class Ledgers:
    """Where virtual devices keep their privacy ledgers: in the run directory, so that a resumed run goes on with them.

    Args:
        journals: a folder of the run directory.
        witnesses: a folder outside it.
        delta: of the run; a virtual site has no limit of its own.
    """

    journals: Path
    witnesses: Path
    delta: float

    def of(self, name: str) -> OpenLedger:
        """One device's."""
        budget = Budget(epsilon=math.inf, delta=self.delta)
        return device_ledger(self.journals / f"{name}.jsonl", witness=self.witnesses / name, budget=budget)

    def noise(self, name: str) -> DeviceStore:
        """Where one device keeps its correlated noise: a secret, so not with what a run directory is handed on for."""
        return FileStore(self.witnesses.with_name(f"{self.witnesses.name}.noise") / name)


class VirtualDevices:
    """All devices of a population, as one handler for ``flower.client_app``.

    Args:
        population: the clients.
        pool: the shared base model.
        coordinator_key: the public key that signs the terms of every round.
        home: where devices remember; None is RAM.
        examples: client name -> its examples, where others use them too.
        ledgers: where they keep what their examples have lost; outlives the process. None: as in a run without
            example-level privacy.
        memory: where devices keep local blocks and controls between rounds; must outlive a resumed run. None is RAM.
        troubles: where each keeps what went wrong; None: in this process's log alone.
        scores: where each keeps its evaluations, for the report; None: nowhere.
    """

    def __init__(
        self,
        population: Population,
        pool: ModelPool,
        *,
        coordinator_key: bytes,
        home: Path | None = None,
        examples: Mapping[str, Examples] | None = None,
        ledgers: Ledgers | None = None,
        memory: Path | None = None,
        troubles: Path | None = None,
        scores: Path | None = None,
    ) -> None:
        # One thread a virtual client: clients run side by side, and sums do not depend on how a product was split.
        torch.set_num_threads(1)
        self._population, self._pool, self._coordinator_key, self._home = population, pool, coordinator_key, home
        self._examples = examples_of(population, pool) if examples is None else examples
        self._ledgers = ledgers
        self._devices: dict[int, Device] = {}
        self._computed: set[int] = set()
        self._memory, self._troubles, self._scores = memory, troubles, scores

    def __call__(self, node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        """Handle one request for the device that this node plays."""
        if node.partition is None or node.partition >= len(self._population.clients):
            raise RuntimeError(f"node {node.node} plays no client of this simulation")
        if node.partition not in self._devices:
            self._devices[node.partition] = self._build(node.partition)
        return self._devices[node.partition].handle(stage, payload)

    def computed(self) -> frozenset[int]:
        """The partitions whose devices have trained or evaluated since this was asked last; none of them is at it."""
        found = frozenset(self._computed)
        self._computed.clear()
        return found

    def _build(self, partition: int) -> Device:
        client, config = self._population.clients[partition], self._population.config
        key = secagg.IdentityKey.generate(os_entropy)
        store: DeviceStore = MemoryStore()
        ledger: secagg.Ledger = secagg.MemoryLedger()
        if self._home is not None:
            store = FileStore(self._home / client.name)
            key = _kept_key(store)
            ledger = secagg.FileLedger(self._home / client.name / "ledger", key, new=True)
        policy = secagg.DevicePolicy(coordinator_key=self._coordinator_key, allow_fast=config.secagg.mode == "fast")
        enrolled = secagg.Enrolled(device=client.name, organisation=client.name)
        session: SumSession = secagg.DeviceSession(ledger=ledger, identity=key, enrolled=enrolled, policy=policy)
        if config.secagg.mode == "off":
            session = PlainSession(self._coordinator_key)

        def rounding(run_id: str, round_id: int) -> Entropy:
            # Not the run's id: the same config and seed must round alike in another run.
            return seeded_entropy(config.run.seed, "rounding", client.name, round_id)

        trainer: Trainer = TorchTrainer(
            device=client.name,
            capacity=client.capacity,
            pool=self._pool,
            examples=self._examples[client.name],
            memory_use=config.performance,
            memory=FileStore(self._memory / client.name) if self._memory is not None else None,
        )
        if self._scores is not None:
            trainer = ScoredTrainer(trainer, ClientScores(self._scores, client.name))
        return Device(
            identity=Identity(device=client.name, organisation=client.name, public_key=key.public),
            trainer=NotedTrainer(trainer, lambda: self._computed.add(partition)),
            session=session,
            store=store,
            entropy=os_entropy,
            rounding=rounding,
            ledger=None if self._ledgers is None else self._ledgers.of(client.name),
            noise=None if self._ledgers is None else self._ledgers.noise(client.name),
            tell=log_trouble if self._troubles is None else trouble_log(self._troubles, client.name),
        )


def examples_of(population: Population, pool: ModelPool) -> dict[str, Examples]:
    """Every client's examples, by name."""
    cache_mb = population.config.performance.cache_mb
    return {
        client.name: Examples(client.name, pool=pool, train=client.train, held_out=client.held_out, cache_mb=cache_mb)
        for client in population.clients
    }


def encode_all(examples: Mapping[str, Examples], plan: LearningPlan) -> tuple[str, ...]:
    """Turn every client's examples into tokens before the first round, so that a bad row stops nothing half-way.

    Returns:
        What is odd about them, a sentence each.

    Raises:
        DataInvalid: what the base refuses, of all clients at once.
    """
    problems: list[Problem] = []
    refused: DataInvalid | None = None
    sets: list[EncodedDataset] = []
    for own in examples.values():
        try:
            sets += own.encoded(plan)
        except DataInvalid as error:
            refused = error
            problems += error.problems
    if refused is not None:
        if not problems:
            raise refused
        raise DataInvalid(
            f"Expected examples that this base takes, found {len(problems)} problems; nothing was started. "
            "See them all: fedpeft data check DATA --base MODEL.",
            problems=problems[:MAX_PROBLEMS],
        ) from refused
    answers, context = (sum(getattr(one, name) for one in sets) for name in ("answers", "context_answers"))
    return (
        *answer_remark(context, answers),
        *unknown_remark(sum(one.unknown for one in sets), sum(map(len, sets))),
    )


@dataclass(frozen=True, kw_only=True)
class RayDevices:
    """The same handler as something that can travel to a Ray actor, which builds the devices on first use."""

    config: RunConfig
    store: Path
    base: str
    coordinator_key: bytes
    home: Path
    ledgers: Ledgers | None = None
    memory: Path | None = None
    troubles: Path | None = None
    scores: Path | None = None
    _token: str = field(default_factory=lambda: os_entropy(8).hex())

    def __call__(self, node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        """Handle one request, in the actor."""
        devices = _in_this_actor.get(self._token)
        if devices is None:
            _in_this_actor.clear()
            store = ArtifactStore(self.store)
            devices = VirtualDevices(
                plan_devices(populate(self.config), store.get(self.base)),
                ModelPool(
                    store,
                    residency=self.config.performance.residency,
                    accelerator=self.config.performance.accelerator,
                ),
                coordinator_key=self.coordinator_key,
                home=self.home,
                ledgers=self.ledgers,
                memory=self.memory,
                troubles=self.troubles,
                scores=self.scores,
            )
            _in_this_actor[self._token] = devices
        return devices(node, stage, payload)


_in_this_actor: dict[str, VirtualDevices] = {}


def _kept_key(store: DeviceStore) -> secagg.IdentityKey:
    secret = store.read("identity")
    if secret is None:
        key = secagg.IdentityKey.generate(os_entropy)
        store.write("identity", key.secret_bytes())
        return key
    return secagg.IdentityKey.from_bytes(secret)
