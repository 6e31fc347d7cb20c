"""`fedpeft simulate`: a whole federation on one machine, through the round code that is deployed.

In order: the data becomes clients, the base becomes an artifact and is loaded once, the run directory is
made (or reopened), the federation runs on the chosen engine, the baselines follow, the report is written.
Same config and same seed give the same final adapter, byte for byte, on every engine.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import Individual
from fedpeft.aggregate.device_side import local_blocks
from fedpeft.base import ArtifactStore, BaseArtifact, build, default_store
from fedpeft.base.fit import expect_fit
from fedpeft.clock import SystemClock
from fedpeft.config import RunConfig
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft.export.earlier_runs import with_sources
from fedpeft.flower import GridTransport, client_app, run_local, run_ray
from fedpeft.round.coordinator import OpenSum, SecureSum
from fedpeft.round.events import Event, EventKind
from fedpeft.round.plan import LearningPlan, learning_plan
from fedpeft.round.rates import rates_told
from fedpeft.round.size_class import weight_share
from fedpeft_client.training.examples import Examples
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.report.page import write_report
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.summary import summary_of
from fedpeft_sim.baselines import Baselines, held_out_scores, run_baselines
from fedpeft_sim.devices import RayDevices, VirtualDevices, encode_all, examples_of
from fedpeft_sim.plain_sum import PlainSum
from fedpeft_sim.planning import plan_devices
from fedpeft_sim.population import Population, expect_enough, populate
from fedpeft_sim.private import expect_affordable, ledgers_of, open_privacy
from fedpeft_sim.publish import publisher
from fedpeft_sim.summary import compare, full_parameter_bytes
from fedpeft_sim.troubles import TroubleWatch

__all__ = ["Screen", "Simulation", "prepare", "simulate"]


class Screen(Protocol):
    """What the simulation tells a person while it runs."""

    def observe(self, event: Event) -> None:
        """One transition of the federation."""
        ...

    def note(self, text: str) -> None:
        """One line."""
        ...

    def working(self, what: str, done: int, total: int) -> None:
        """Progress of something long that is not a round."""
        ...


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Everything that is decided before the first round.

    Args:
        population: the clients, and the config with labels resolved.
        artifact: the base.
        pool: the base loaded, with the adapter.
        examples: client name -> its examples; the baselines find them encoded and their activations cached.
        plan: what devices are asked to learn; its run id is still empty.
        initial: where the run begins.
    """

    population: Population
    artifact: BaseArtifact
    pool: ModelPool
    examples: Mapping[str, Examples]
    plan: LearningPlan
    initial: AdapterState

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return self.population.config


def prepare(
    config: RunConfig, screen: Screen, *, store: Path | None = None, base_digest: str | None = None
) -> Simulation:
    """Load and check everything; nothing is written but the base artifact.

    Args:
        config: the run.
        screen: told of everything.
        store: where base artifacts lie; None: the user's store.
        base_digest: of the base that a resumed run began with: taken from the store if it is there, wherever
            ``base.model`` lay then.

    Raises:
        FedpeftError: the data, the base or the adapter is not what the config needs.
    """
    population = populate(config)
    for name, count in population.left_out.items():
        screen.note(f"client {name} is left out: {count} examples, {config.data.partition.min_examples} needed")
    for remark in population.remarks:
        screen.note(f"note: {remark}")
    if len(population.clients) < secagg.MIN_COHORT_FLOOR:
        raise ConfigInvalid(
            f"Expected {secagg.MIN_COHORT_FLOOR} clients or more, found {len(population.clients)}; "
            "with two, each learns the other's update from the sum."
        )
    expect_enough(population)
    config = population.config
    where = store or default_store()
    kept = base_digest is not None and (where / f"sha256-{base_digest.removeprefix('sha256:')}").is_dir()
    artifact = build(
        base_digest if kept and base_digest else config.base.model,
        quantize=config.base.quantize,
        store=where,
        progress=lambda what, share: screen.working(what, round(100 * share), 100),
    )
    expect_fit(artifact, config.task, config.adapter)
    population = plan_devices(population, artifact)
    for sentence, names in population.by_plan().items():
        screen.note(f"{', '.join(names)}: {sentence}")
    torch.set_num_threads(1)
    pool = ModelPool(
        ArtifactStore(where),
        places=workers_of(config),
        residency=config.performance.residency,
        accelerator=config.performance.accelerator,
    )
    draft = learning_plan(config, run_id="", base=artifact.digest, adapter_spec="")
    initial = with_sources(pool.initial_state(draft), config.adapter, config.base.adapters)
    plan = draft.model_copy(update={"adapter_spec": initial.spec.digest})
    expect_affordable(plan, population, initial.spec)
    examples = examples_of(population, pool)
    for remark in encode_all(examples, plan):
        screen.note(f"note: {remark}")
    return Simulation(
        population=population,
        artifact=artifact,
        pool=pool,
        examples=examples,
        plan=plan,
        initial=initial,
    )


def simulate(
    simulation: Simulation,
    screen: Screen,
    *,
    source: str,
    command: Sequence[str],
    resume: Path | None = None,
    baselines: bool = True,
) -> Path:
    """Run the federation, then the baselines, then the report; returns the run directory.

    Args:
        simulation: from ``prepare``.
        screen: told of everything.
        source: run.toml as read; kept in the run directory.
        command: the command line, for the records.
        resume: a run directory to go on with; None starts a new one.
        baselines: also train every client alone and all data in one place.

    Raises:
        FedpeftError: the run failed; everything committed is kept.
    """
    with _directory(simulation, source, command, resume) as run:
        for name, sentence in simulation.population.plans.items() if resume is None else ():
            run.record("device.planned", client=name, detail={"plan": sentence})
        screen.note(f"run directory {run.path}")
        rates = rates_told(simulation.plan, simulation.initial.spec)
        run.record("learning.rates", detail={"rates": rates})
        screen.note(rates)
        plan = simulation.plan.model_copy(update={"run_id": run.manifest.run_id})
        try:
            state = _federate(simulation, plan, run, screen)
        except (FedpeftError, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else str(error)
            run.write_summary(summary_of(run, "interrupted" if interrupted else "failed", reason))
            with suppress(FedpeftError, OSError):
                write_report(run.path)
            screen.note(f"go on with:  {shlex.join(['fedpeft', 'simulate', '--resume', str(run.path)])}")
            raise
        full_bytes = full_parameter_bytes(
            plan, simulation.pool, rounds=simulation.config.rounds.count, clients=len(simulation.population.clients)
        )
        run.write_summary(summary_of(run, "finished", full_bytes=full_bytes))
        federated = held_out_scores(plan, state, simulation.examples, simulation.pool)
        compared: Baselines | None = None
        if baselines:
            compared = run_baselines(
                plan,
                simulation.config.rounds,
                simulation.initial,
                simulation.population.clients,
                simulation.pool,
                examples=simulation.examples,
                workers=workers_of(simulation.config),
                progress=screen.working,
            )
        comparison = compare(federated, compared, language_model=plan.task.kind == "causal-lm")
        run.write_summary(summary_of(run, "finished", full_bytes=full_bytes, comparison=comparison))
        write_report(run.path)
        return run.path


def _directory(simulation: Simulation, source: str, command: Sequence[str], resume: Path | None) -> RunDirectory:
    """A new run directory, or the one to go on with if data, base and adapter are what it began with."""
    adapter, base, data = simulation.initial.spec, simulation.artifact.digest, simulation.population.digest()
    if resume is None:
        return RunDirectory.create(
            simulation.config,
            source=source,
            adapter=adapter,
            base_digest=base,
            command=command,
            data_digest=data,
            convention=simulation.population.convention.value,
        )
    run = RunDirectory.open(resume)
    try:
        run.expect(adapter=adapter, base_digest=base, data_digest=data)
    except BaseException:
        run.close()
        raise
    return run


def workers_of(config: RunConfig) -> int:
    """How many virtual clients run at once: as configured, or one a core."""
    return config.performance.workers or len(os.sched_getaffinity(0))


def _federate(simulation: Simulation, plan: LearningPlan, run: RunDirectory, screen: Screen) -> AdapterState:
    """The rounds, on the configured engine."""
    with open_privacy(plan, simulation.population, simulation.initial.spec, run, screen.note) as privacy:
        return _on_engine(simulation, plan, run, screen, privacy)


def _on_engine(
    simulation: Simulation, plan: LearningPlan, run: RunDirectory, screen: Screen, privacy: ClientPrivacy | None
) -> AdapterState:
    config = simulation.config
    identity = secagg.IdentityKey.generate(os_entropy)
    result: list[AdapterState] = []
    troubles = run.path.resolve() / "troubles"
    watch = TroubleWatch(troubles, run, screen.note)

    def observe(event: Event) -> None:
        if event.kind in (EventKind.COMMITTED, EventKind.ABORTED, EventKind.BURNT):
            watch.look()
        screen.observe(event)

    def coordinate(transport: GridTransport) -> None:
        open_sum: OpenSum = SecureSum
        seen: list[Individual] | None = None
        if config.secagg.mode == "off":
            seen = []
            open_sum = partial(PlainSum, seen=seen, share=partial(weight_share, config.aggregate))
        federation = Federation(
            config,
            plan,
            run,
            transport,
            identity=identity,
            clock=SystemClock(),
            observe=observe,
            publish=publisher(
                simulation.pool, plan, run, probe=simulation.population.clients[0].held_out, base=config.base.model
            ),
            open_sum=open_sum,
            individuals=None if seen is None else lambda: tuple(seen),
            privacy=privacy,
        )
        result.append(federation.train(simulation.initial))

    count, workers = len(simulation.population.clients), workers_of(config)
    keeps = config.train.scaffold or local_blocks(config.aggregate, simulation.initial.spec)
    memory = run.path.resolve() / "personal" if keeps else None  # a resumed run goes on with what its devices kept
    if config.performance.engine == "ray":
        home = run.path / "devices" / os_entropy(4).hex()  # other devices at each start: these die with the run
        store = simulation.artifact.path.parent
        handler = RayDevices(
            config=config,
            store=store,
            base=simulation.artifact.digest,
            coordinator_key=identity.public,
            home=home.resolve(),
            ledgers=ledgers_of(config, run),
            memory=memory,
            troubles=troubles,
        )
        try:
            run_ray(client_app(handler), coordinate, devices=count, workers=workers)
        finally:
            shutil.rmtree(home, ignore_errors=True)  # the devices' keys and inputs die with the run
    else:
        local = VirtualDevices(
            simulation.population,
            simulation.pool,
            coordinator_key=identity.public,
            examples=simulation.examples,
            ledgers=ledgers_of(config, run),
            memory=memory,
            troubles=troubles,
        )
        run_local(client_app(local), coordinate, devices=count, workers=workers)
    return result[0]
