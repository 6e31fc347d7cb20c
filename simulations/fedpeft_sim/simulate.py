"""`fedpeft simulate`: a whole federation on one machine, through the round code that is deployed.

In order: the data becomes clients, the base becomes an artifact and is loaded once, the run directory is
made (or reopened), the federation runs on the chosen engine, the baselines follow, the report is written.
Same config and same seed give the same final adapter, byte for byte, on every engine.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.base import ArtifactStore, BaseArtifact, build, default_store
from fedpeft.clock import SystemClock
from fedpeft.config import RunConfig
from fedpeft.data import encode
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft.flower import GridTransport, client_app, run_local, run_ray
from fedpeft.methods import export_peft
from fedpeft.round.coordinator import OpenSum, SecureSum
from fedpeft.round.events import Event
from fedpeft.round.plan import LearningPlan, learning_plan
from fedpeft_client.bench import Bench
from fedpeft_server.federation import Federation, Publish
from fedpeft_server.records import Comparison, Summary
from fedpeft_server.report import write_report
from fedpeft_server.run_directory import AdapterSlot, RunDirectory
from fedpeft_sim.baselines import Baselines, Scores, accuracy, held_out_scores, run_baselines
from fedpeft_sim.devices import RayDevices, VirtualDevices
from fedpeft_sim.plain_sum import PlainSum
from fedpeft_sim.population import Population, populate

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
        bench: the base loaded, with the adapter.
        plan: what devices are asked to learn; its run id is still empty.
        initial: where the run begins.
    """

    population: Population
    artifact: BaseArtifact
    bench: Bench
    plan: LearningPlan
    initial: AdapterState

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return self.population.config


def prepare(config: RunConfig, screen: Screen, *, store: Path | None = None) -> Simulation:
    """Load and check everything; nothing is written but the base artifact.

    Raises:
        FedpeftError: the data, the base or the adapter is not what the config needs.
    """
    population = populate(config)
    for name, count in population.left_out.items():
        screen.note(f"client {name} is left out: {count} examples, {config.data.partition.min_examples} needed")
    if len(population.clients) < secagg.MIN_COHORT_FLOOR:
        raise ConfigInvalid(
            f"Expected {secagg.MIN_COHORT_FLOOR} clients or more, found {len(population.clients)}; "
            "with two, each learns the other's update from the sum."
        )
    config = population.config
    where = store or default_store()
    artifact = build(
        config.base.model,
        quantize=config.base.quantize,
        store=where,
        progress=lambda what, share: screen.working(what, round(100 * share), 100),
    )
    torch.set_num_threads(1)
    bench = Bench(ArtifactStore(where), places=workers_of(config))
    draft = learning_plan(config, run_id="", base=artifact.digest, adapter_spec="")
    initial = bench.initial_state(draft)
    plan = draft.model_copy(update={"adapter_spec": initial.spec.digest})
    return Simulation(population=population, artifact=artifact, bench=bench, plan=plan, initial=initial)


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
    if resume is not None:
        run = RunDirectory.open(resume)
        run.expect(adapter=simulation.initial.spec, base_digest=simulation.artifact.digest)
    else:
        run = RunDirectory.create(
            simulation.config,
            source=source,
            adapter=simulation.initial.spec,
            base_digest=simulation.artifact.digest,
            command=command,
        )
    with run:
        screen.note(f"run directory {run.path}")
        plan = simulation.plan.model_copy(update={"run_id": run.manifest.run_id})
        try:
            state = _federate(simulation, plan, run, screen)
        except (FedpeftError, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else str(error)
            run.write_summary(_summary(run, "interrupted" if interrupted else "failed", reason))
            with suppress(FedpeftError, OSError):
                write_report(run.path)
            screen.note(f"go on with:  fedpeft simulate --resume {run.path}")
            raise
        full_bytes = _full_bytes(simulation)
        run.write_summary(_summary(run, "finished", full_bytes=full_bytes))
        federated = held_out_scores(plan, state, simulation.population.clients, simulation.bench)
        compared: Baselines | None = None
        if baselines:
            compared = run_baselines(
                plan,
                simulation.config.rounds,
                simulation.initial,
                simulation.population.clients,
                simulation.bench,
                workers=workers_of(simulation.config),
                progress=screen.working,
            )
        comparison = _comparison(federated, compared)
        run.write_summary(_summary(run, "finished", full_bytes=full_bytes, comparison=comparison))
        write_report(run.path)
        return run.path


def workers_of(config: RunConfig) -> int:
    """How many virtual clients run at once: as configured, or one a core."""
    return config.performance.workers or len(os.sched_getaffinity(0))


def _federate(simulation: Simulation, plan: LearningPlan, run: RunDirectory, screen: Screen) -> AdapterState:
    """The rounds, on the configured engine."""
    config = simulation.config
    identity = secagg.IdentityKey.generate(os_entropy)
    result: list[AdapterState] = []

    def coordinate(transport: GridTransport) -> None:
        open_sum: OpenSum = PlainSum if config.secagg.mode == "off" else SecureSum
        federation = Federation(
            config,
            plan,
            run,
            transport,
            identity=identity,
            clock=SystemClock(),
            observe=screen.observe,
            publish=_publisher(simulation, plan, run),
            open_sum=open_sum,
        )
        result.append(federation.train(simulation.initial))

    count, workers = len(simulation.population.clients), workers_of(config)
    if config.performance.engine == "ray":
        home = run.path / "devices" / f"{run.incarnation}"
        store = simulation.artifact.path.parent
        handler = RayDevices(config=config, store=store, coordinator_key=identity.public, home=home.resolve())
        run_ray(client_app(handler), coordinate, devices=count, workers=workers)
    else:
        local = VirtualDevices(simulation.population, simulation.bench, coordinator_key=identity.public)
        run_local(client_app(local), coordinate, devices=count, workers=workers)
    return result[0]


def _publisher(simulation: Simulation, plan: LearningPlan, run: RunDirectory) -> Publish:
    """Exports a committed state under ``adapters/<slot>``."""
    config = simulation.config

    def publish(slot: AdapterSlot, state: AdapterState) -> None:
        with simulation.bench.lend(plan) as union:
            union.load(state)
            inputs = _probe(simulation, plan) if slot == "final" else None

            def write(folder: Path) -> None:
                export_peft(
                    union, folder, base=config.base.model, base_digest=simulation.artifact.digest, inputs=inputs
                )

            run.publish_adapter(slot, write)

    return publish


def _probe(simulation: Simulation, plan: LearningPlan) -> dict[str, torch.Tensor]:
    """A few held-out examples as model inputs: the exported files are compared with the model on them."""
    client = simulation.population.clients[0]
    encoded = encode(
        client.held_out.select(range(min(4, len(client.held_out)))),
        plan.task,
        plan.task.labels,
        simulation.bench.tokenizer(plan),
    )
    rows = [torch.from_numpy(tokens.astype("int64")) for tokens in encoded.input_ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": input_ids, "attention_mask": mask}


def _full_bytes(simulation: Simulation) -> int:
    """What a federation of every parameter would have moved: fp32, down and up, every client, every round."""
    with simulation.bench.lend(simulation.plan) as union:
        parameters = sum(parameter.numel() for parameter in union.model.parameters())
    rounds = simulation.config.rounds.count
    return 4 * parameters * 2 * rounds * len(simulation.population.clients)


def _summary(
    run: RunDirectory,
    outcome: Literal["finished", "failed", "interrupted"],
    reason: str = "",
    *,
    full_bytes: int | None = None,
    comparison: tuple[Comparison, ...] = (),
) -> Summary:
    rows = run.rounds
    return Summary(
        outcome=outcome,
        reason=reason,
        rounds=sum(row.round <= run.config.rounds.count for row in rows),
        seconds=sum(row.seconds for row in rows),
        bytes_up=sum(row.bytes_up for row in rows),
        bytes_down=sum(row.bytes_down for row in rows),
        bytes_full_parameters=full_bytes,
        comparison=comparison,
    )


def _comparison(federated: Scores, baselines: Baselines | None) -> tuple[Comparison, ...]:
    """One row a client, and one for the union of all held-out examples."""
    rows = []
    for name, score in federated.items():
        rows.append(
            Comparison(
                client=name,
                examples=score.examples,
                alone=accuracy([baselines.alone[name]]) if baselines else None,
                federated=accuracy([score]),
                centralised=accuracy([baselines.centralised[name]]) if baselines else None,
            )
        )
    everywhere = [accuracy([score]) for score in baselines.alone_everywhere.values()] if baselines else []
    rows.append(
        Comparison(
            client="all",
            examples=sum(score.examples for score in federated.values()),
            alone=sum(everywhere) / len(everywhere) if everywhere else None,
            federated=accuracy(list(federated.values())),
            centralised=accuracy(list(baselines.centralised.values())) if baselines else None,
        )
    )
    return tuple(rows)
