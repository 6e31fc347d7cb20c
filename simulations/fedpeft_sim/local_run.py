"""A run on a local federation from its file to its end, told to a screen as a simulation tells it."""

import threading
from pathlib import Path

from fedpeft.base import build, default_store
from fedpeft.base.fit import expect_fit
from fedpeft.clock import SystemClock
from fedpeft.config import RunConfig
from fedpeft.entropy import os_entropy
from fedpeft.errors import RunFailed
from fedpeft.ids import RoundId
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft_server.jobs.job_queue import JobState
from fedpeft_server.run.records import EventRecord, from_json
from fedpeft_sim.local_federation import LOOK_S, LocalFederation
from fedpeft_sim.planning import plan_devices
from fedpeft_sim.population import Population, expect_enough, populate
from fedpeft_sim.screen import Screen

__all__ = ["begin", "follow", "provision"]


def provision(config: RunConfig, screen: Screen, *, store: Path | None) -> tuple[Population, LocalFederation, str]:
    """A new federation in ``config.directory`` whose coordinator is starting, and the digest of its base.

    Raises:
        FedpeftError: the data or the base is not what the config needs; nothing runs then.
    """
    population = populate(config)
    expect_enough(population)
    stamp = f"{SystemClock().utc():%Y%m%dT%H%M%SZ}"
    folder = config.directory / f"{stamp}-{config.run.name}-{os_entropy(2).hex()}-local"
    planned = any(client.device.methods == "auto" for client in population.clients)
    federation = None if planned else _started(folder, population)  # while the base is built
    try:
        artifact = build(
            config.base.model,
            quantize=config.base.quantize,
            store=store or default_store(),
            progress=lambda what, share: screen.working(what, round(100 * share), 100),
        )
        expect_fit(artifact, population.config.task, config.adapter)
        if federation is None:
            population = plan_devices(population, artifact)
            federation = _started(folder, population)
        federation.take_base(artifact)
    except BaseException:
        if federation is not None:
            federation.end()
        raise
    return population, federation, artifact.digest


def _started(folder: Path, population: Population) -> LocalFederation:
    federation = LocalFederation.make(folder, population)
    federation.start_coordinator()
    return federation


def begin(federation: LocalFederation, screen: Screen) -> None:
    """Enrol and start every device; returns when all are there."""
    federation.until_ready()
    for done, name in enumerate(federation.clients):
        screen.working("devices", done, len(federation.clients))
        federation.start_device(name)
    federation.until_online()
    screen.working("devices", len(federation.clients), len(federation.clients))


def follow(federation: LocalFederation, screen: Screen) -> Path:
    """Tell the screen of every event until the run has ended; returns the run directory.

    Raises:
        RunFailed: the run or a process of the federation failed.
    """
    pause, position = threading.Event(), 0
    while True:
        job = federation.job()
        run = federation.home.runs / job.run if job.run else None
        if run is not None:
            position = _tell(run / "events.jsonl", position, screen)
        if job.state not in (JobState.QUEUED, JobState.RUNNING):
            break
        federation.expect_alive()
        pause.wait(LOOK_S)
    if job.state is not JobState.FINISHED or run is None:
        raise RunFailed(f"The run ended {job.state.value}: {job.reason}\nLogs: {federation.path / 'logs'}.")
    return run


def _tell(events: Path, position: int, screen: Screen) -> int:
    """Whole lines after ``position``; returns where they end."""
    if not events.exists():
        return position
    with events.open("rb") as file:
        file.seek(position)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    for line in whole.splitlines():
        if event := _event(from_json(EventRecord, line.decode(), where=str(events))):
            screen.observe(event)
    return position + len(whole)


def _event(record: EventRecord) -> Event | None:
    """The round's event that was recorded; None for other records."""
    kinds = {kind.value: kind for kind in EventKind}
    kind = kinds.get(record.kind.removeprefix("round."))
    if kind is None or record.round is None:
        return None
    detail = record.detail
    return Event(
        kind=kind,
        round_id=RoundId(record.round),
        stage=Stage(detail["stage"]) if "stage" in detail else None,
        device=record.client,
        detail=str(detail.get("detail", "")),
        seconds=float(detail.get("seconds", 0.0)),
        bytes_up=int(detail.get("bytes_up", 0)),
        bytes_down=int(detail.get("bytes_down", 0)),
    )
