"""The engines that carry a simulation's rounds: threads of this process, or Flower's Ray."""

import os
import shutil
import time
from functools import partial
from pathlib import Path

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import Individual
from fedpeft.aggregate.device_side import local_blocks
from fedpeft.clock import Clock, SystemClock
from fedpeft.config import RunConfig
from fedpeft.entropy import os_entropy
from fedpeft.flower import GridTransport, client_app, run_local, run_ray
from fedpeft.flower.pace import PacedTransport, SimulatedClock
from fedpeft.interrupts import undisturbed
from fedpeft.round.coordinator import OpenSum, SecureSum
from fedpeft.round.events import Event, EventKind
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import weight_share
from fedpeft.round.transport import Transport
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.run.client_scores import scores_folder
from fedpeft_server.run.committing import AfterRound, go_on
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_sim.devices import RayDevices, VirtualDevices
from fedpeft_sim.plain_sum import PlainSum
from fedpeft_sim.population import Population
from fedpeft_sim.private import ledgers_of, open_privacy
from fedpeft_sim.publish import publisher
from fedpeft_sim.simulation import Screen, Simulation
from fedpeft_sim.troubles import TroubleWatch

__all__ = ["federate", "workers_of"]

REMOVALS, PAUSE_S = 20, 0.1


def workers_of(config: RunConfig) -> int:
    """How many virtual clients run at once: as configured, or one per core."""
    return config.performance.workers or len(os.sched_getaffinity(0))


def federate(
    simulation: Simulation, plan: LearningPlan, run: RunDirectory, screen: Screen, after_round: AfterRound = go_on
) -> AdapterState:
    """The rounds, on the configured engine.

    Args:
        after_round: see ``Federation``.
    """
    with open_privacy(plan, simulation.population, simulation.initial.spec, run, screen.note) as privacy:
        return _on_engine(simulation, plan, run, screen, privacy, after_round)


def _on_engine(
    simulation: Simulation,
    plan: LearningPlan,
    run: RunDirectory,
    screen: Screen,
    privacy: ClientPrivacy | None,
    after_round: AfterRound,
) -> AdapterState:
    config = simulation.config
    identity = secagg.IdentityKey.generate(os_entropy)
    result: list[AdapterState] = []
    troubles = run.path.resolve() / "troubles"
    scores = scores_folder(run.path.resolve()) if config.privacy.unit == "none" else None
    watch = TroubleWatch(troubles, run, screen.note)

    def observe(event: Event) -> None:
        if event.kind in (EventKind.COMMITTED, EventKind.ABORTED, EventKind.BURNT):
            watch.look()
        screen.observe(event)

    local: VirtualDevices | None = None

    def coordinate(grid: GridTransport) -> None:
        clock, transport = _timed(grid, simulation.population, local)
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
            clock=clock,
            observe=observe,
            publish=publisher(
                simulation.pool, plan, run, probe=simulation.population.clients[0].held_out, base=config.base.model
            ),
            open_sum=open_sum,
            individuals=None if seen is None else lambda: tuple(seen),
            privacy=privacy,
            after_round=after_round,
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
            scores=scores,
        )
        try:
            run_ray(client_app(handler), coordinate, devices=count, workers=workers)
        finally:
            with undisturbed():
                _remove(home)  # the devices' keys and inputs die with the run
    else:
        local = VirtualDevices(
            simulation.population,
            simulation.pool,
            coordinator_key=identity.public,
            examples=simulation.examples,
            ledgers=ledgers_of(config, run),
            memory=memory,
            troubles=troubles,
            scores=scores,
        )
        run_local(client_app(local), coordinate, devices=count, workers=workers)
    return result[0]


def _remove(home: Path) -> None:
    """Remove a folder into which a process that is ending may still write."""
    for _ in range(REMOVALS):
        shutil.rmtree(home, ignore_errors=True)
        if not home.exists():
            return
        time.sleep(PAUSE_S)


def _timed(grid: GridTransport, population: Population, local: VirtualDevices | None) -> tuple[Clock, Transport]:
    """The machine's clock, or a simulated one where the configuration says how long its devices take."""
    fit_s = [client.device.fit_seconds for client in population.clients]
    if local is None or not any(fit_s):
        return SystemClock(), grid
    clock, nodes, computed = SimulatedClock(), grid.nodes(), local.computed
    takes_s = {node: seconds or 0.0 for node, seconds in zip(nodes, fit_s, strict=True)}
    paced = PacedTransport(
        grid, clock, fit_s=takes_s.__getitem__, computed=lambda: {nodes[partition] for partition in computed()}
    )
    return clock, paced
