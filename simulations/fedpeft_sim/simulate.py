"""`fedpeft simulate`: a whole federation on one machine, through the round code that is deployed.

In order: the data becomes clients, the base becomes an artifact and is loaded once, the run directory is
made (or reopened), the federation runs on the chosen engine, the baselines follow, the report is written.
Same config and same seed give the same final adapter, byte for byte, on every engine.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fedpeft import secagg
from fedpeft.base import ArtifactStore, BaseArtifact, build, default_store
from fedpeft.base.fit import expect_fit
from fedpeft.config import RunConfig
from fedpeft.config.derived import invited_devices
from fedpeft.data.memory import Rows
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft.export.earlier_runs import with_sources
from fedpeft.interrupts import undisturbed
from fedpeft.round.plan import LearningPlan, learning_plan
from fedpeft.round.rates import rates_told
from fedpeft.round.start import named_start
from fedpeft.terminal import counted, quoted, span
from fedpeft_client.training.examples import Examples
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_server.report.page import write_report
from fedpeft_server.run.committing import AfterRound, go_on
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.summary import summary_of
from fedpeft_server.run.verdict import learning_rate_scale
from fedpeft_server.track import Tracking, expect_trackers
from fedpeft_sim.baselines import Baselines, held_out_scores, run_baselines
from fedpeft_sim.devices import encode_all, examples_of
from fedpeft_sim.duration import expected_s
from fedpeft_sim.engines import federate, workers_of
from fedpeft_sim.planning import plan_devices
from fedpeft_sim.population import Population, expect_enough, populate
from fedpeft_sim.private import expect_affordable
from fedpeft_sim.simulation import Screen, Simulation
from fedpeft_sim.summary import compare, confusion_of, full_parameter_bytes

__all__ = ["prepare", "simulate"]

LONG_S = 300.0
"""From here on a person is told how to make it shorter."""


def prepare(
    config: RunConfig,
    screen: Screen,
    *,
    data: Rows | None = None,
    store: Path | None = None,
    base_digest: str | None = None,
    done: int = 0,
) -> Simulation:
    """Load and check everything; nothing is written but the base artifact.

    Args:
        config: the run.
        screen: told of everything.
        data: rows that a program holds, in the place of ``data.source``.
        store: where base artifacts lie; None: the user's store.
        base_digest: of the base that a resumed run began with: taken from the store if it is there, wherever
            ``base.model`` lay then.
        done: rounds that a resumed run has committed.

    Raises:
        FedpeftError: the data, the base or the adapter is not what the config needs.
    """
    if data is not None and config.performance.engine == "ray":
        raise ConfigInvalid(
            'Expected performance.engine = "local" for data from Python, found "ray", whose processes read files; '
            "write the data to a file."
        )
    expect_trackers(config.track.to)
    population = populate(config, data)
    for name, count in population.left_out.items():
        screen.note(f"client {name} is left out: {count} examples, {config.data.partition.min_examples} needed")
    for remark in population.remarks:
        screen.note(f"note: {remark}")
    if len(population.clients) < secagg.MIN_COHORT_FLOOR:
        raise ConfigInvalid(
            f"Expected {secagg.MIN_COHORT_FLOOR} clients or more, found {len(population.clients)}; "
            "with two, each could compute the other's update from the sum."
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
    made = pool.initial_state(draft)
    initial = with_sources(made, config.adapter, config.base.adapters)
    plan = draft.model_copy(update={"adapter_spec": initial.spec.digest, "start": named_start(made, initial)})
    expect_affordable(plan, population, initial.spec)
    examples = examples_of(population, pool)
    for remark in encode_all(examples, plan):
        screen.note(f"note: {remark}")
    if done < config.rounds.count:
        screen.note(_foretold(population, artifact, examples, plan, rounds=config.rounds.count - done))
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
    watch: Callable[[Path], AfterRound] = lambda run: go_on,
) -> Path:
    """Run the federation, then the baselines, then the report; returns the run directory.

    Args:
        simulation: from ``prepare``.
        screen: told of everything.
        source: run.toml as read; kept in the run directory.
        command: the command line, for the records.
        resume: a run directory to go on with; None starts a new one.
        baselines: also train every client alone and all data in one place.
        watch: from the run directory, what is told of each round and may end the run.

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
            with Tracking(simulation.config, run, screen.note) as tracking:
                state = federate(simulation, plan, run, screen, tracking.then(watch(run.path)))
        except (FedpeftError, KeyboardInterrupt) as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else str(error)
            with undisturbed():
                run.write_summary(summary_of(run, "interrupted" if interrupted else "failed", reason))
                with suppress(FedpeftError, OSError):
                    write_report(run.path)
                screen.hint(f"continue with:  {quoted('fedpeft', 'simulate', '--resume', run.path)}")
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
                scale=learning_rate_scale(run.rounds),
                progress=screen.working,
            )
        run.write_summary(
            summary_of(
                run,
                "finished",
                full_bytes=full_bytes,
                comparison=compare(federated, compared, task=plan.task),
                confusion=confusion_of(federated, task=plan.task),
            )
        )
        write_report(run.path)
        return run.path


def _foretold(
    population: Population,
    artifact: BaseArtifact,
    examples: Mapping[str, Examples],
    plan: LearningPlan,
    *,
    rounds: int,
) -> str:
    """How long so many rounds will take, in a sentence."""
    config, workers = population.config, workers_of(population.config)
    asked = invited_devices(config.rounds, len(population.clients))
    ahead = f"{counted(rounds, 'round')} of {counted(asked, 'client')}, {workers} at once"
    try:
        expected = expected_s(population, artifact, examples, plan, rounds=rounds, asked=asked, workers=workers)
    except ConfigInvalid:  # a shape that the planner does not know: the first two rounds tell
        return ahead
    shorter = "; fewer: --rounds N; lighter: --set adapter.layers=2" if expected > LONG_S else ""
    return f"{ahead}: about {span(expected, roughly=True)} without baselines, if the cores are free{shorter}"


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
