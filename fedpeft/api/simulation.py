"""``fedpeft.simulate``: a whole federation on this machine, as `fedpeft simulate` runs it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from fedpeft.api.callbacks import Callbacks, after_rounds, expect_callbacks
from fedpeft.api.configuration import Config, Overrides, configured, inline, lines
from fedpeft.api.progress import Progress, shown
from fedpeft.api.result import Result, open_run
from fedpeft.api.run_path import run_directory
from fedpeft.config import RunConfig
from fedpeft.data.formats import located
from fedpeft.data.memory import MEMORY, Rows, rows_of
from fedpeft.directory_lock import in_use
from fedpeft.errors import ConfigInvalid
from fedpeft.files import expect_folder
from fedpeft.terminal import counted
from fedpeft_server.run.run_view import RunView

__all__ = ["CLIENT", "given_data", "placed", "simulate", "trained"]

CLIENT = "client"
"""Column that says whose a row is, where data comes as a dictionary of clients."""

COMMAND = ("fedpeft.simulate",)


def simulate(
    config: Config | None = None,
    data: object = None,
    *,
    callbacks: Callbacks = (),
    overrides: Overrides = (),
    out: str | Path = "runs",
    resume: str | os.PathLike[str] | None = None,
    baselines: bool = False,
    progress: bool | Progress = False,
    store: str | Path | None = None,
    command: Sequence[str] = COMMAND,
) -> Result:
    """Run the federation that ``config`` describes; nothing leaves this machine.

    Args:
        config: a run.toml, ``"airlines"``, ``"smollm"``, or a dictionary of what such a file holds; None to resume.
        data: in the place of ``data.source``: another path, a list of dictionaries, a pandas DataFrame, a
            ``datasets.Dataset``, an iterable of dictionaries; or a dictionary client -> one of these, which makes each
            key one client. It stays in memory: the run directory holds none of it.
        callbacks: functions of a ``RoundResult``, or objects with ``on_round``; each may raise ``StopRun``.
        overrides: ``{"rounds.count": 3}``, or ``["rounds.count=3"]`` as for ``--set``.
        out: folder in which the run directory is made.
        resume: the directory of a run to go on with; its data again in ``data`` if it came from Python.
        baselines: also train every client alone and all data in one place: three times the work.
        progress: True shows one bar (a widget in a notebook); or your own ``Progress``.
        store: where base artifacts lie; None: the user's store.
        command: what the manifest says that started the run.

    Returns:
        The finished run.

    Raises:
        FedpeftError: with the text that the command line shows; everything committed is kept.
    """
    expect_callbacks(callbacks)
    rows, changes = given_data(data)
    previous = None if resume is None else run_directory(resume)
    begun = None if previous is None else open_run(previous).view
    if begun is None:
        if config is None:
            raise ConfigInvalid("Expected a config, or a run to resume, found neither.")
        loaded, text = configured(config, [*lines(overrides), *changes])
        loaded = placed(loaded, Path(out))
    else:
        _expect_as_it_was(config, [*lines(overrides), *(changes if rows is None else ())])
        if begun.writer is not None:
            raise in_use(begun.path, begun.writer)
        loaded, text = begun.config(), begun.resolved
    for folder in (out,) if store is None else (out, store):
        expect_folder(Path(folder))
    named = previous or (config if isinstance(config, str | Path) else "in memory")
    return trained(
        loaded,
        text,
        rows,
        begun=begun,
        callbacks=callbacks,
        baselines=baselines,
        progress=progress,
        store=None if store is None else Path(store),
        command=command,
        loading=f"config {named}; {counted(len(lines(overrides)), 'override')}; loading",
    )


def trained(
    config: RunConfig,
    text: str,
    rows: Rows | None,
    *,
    begun: RunView | None,
    base_digest: str | None = None,
    callbacks: Callbacks = (),
    baselines: bool = False,
    progress: bool | Progress = False,
    store: Path | None = None,
    command: Sequence[str] = COMMAND,
    loading: str,
) -> Result:
    """Run a configuration that was read, or go on with a run.

    Args:
        config: the run.
        text: its run.toml.
        rows: its data if a program holds them.
        begun: the run to go on with.
        base_digest: of the base, where another run has named it.
        loading: what is said first.
        callbacks, baselines, progress, store, command: as of ``simulate``.
    """
    from fedpeft_server.run.verdict import rounds_done  # torch from here on: what is wrong above is said without it
    from fedpeft_server.run.versions import changed_versions
    from fedpeft_sim.simulate import prepare
    from fedpeft_sim.simulate import simulate as run_simulation

    with shown(progress) as screen, _threads_kept():
        screen.loading(loading)
        if begun is not None and (others := changed_versions(begun.manifest.versions)):
            screen.note(f"note: {others}")
        simulation = prepare(
            config,
            screen,
            data=rows,
            store=store,
            base_digest=base_digest if begun is None else begun.manifest.base_digest,
            done=0 if begun is None else rounds_done(begun.rounds, config.rounds),
        )
        rounds = simulation.config.rounds.count
        clients = simulation.population.clients
        screen.clients({client.name: str(client.capacity) for client in clients}, rounds)
        path = run_simulation(
            simulation,
            screen,
            source=text,
            command=command,
            resume=None if begun is None else begun.path,
            baselines=baselines,
            watch=lambda run: after_rounds(callbacks, run=run, rounds=rounds),
        )
    return open_run(path)


def given_data(data: object) -> tuple[Rows | None, list[str]]:
    """Rows in memory, if they are, and what the configuration says of the data instead."""
    if data is None:
        return None, []
    if isinstance(data, str | Path):
        return None, [f"data.source={inline(str(data), 'data')}"]
    changes = [f'data.source="{MEMORY}data"']
    if isinstance(data, Mapping) and type(data).__module__.partition(".")[0] != "datasets":
        partition = inline({"by": "column", "column": CLIENT}, "data.partition")
        return Rows(chain.from_iterable(_owned(str(name), own) for name, own in data.items())), [
            *changes,
            f"data.partition={partition}",
        ]
    return rows_of(data), changes


def _owned(client: str, data: object) -> Iterator[object]:
    """One client's rows, each with its name."""
    for row in rows_of(data, MEMORY + client).rows:
        yield {**row, CLIENT: client} if isinstance(row, Mapping) else row


def placed(config: RunConfig, out: Path) -> RunConfig:
    """The configuration with where its runs go, and its data named apart from the working directory."""
    data = config.data.model_copy(update={"source": located(config.data.source)})
    return config.model_copy(update={"directory": out, "data": data})


def _expect_as_it_was(config: object, changes: Sequence[str]) -> None:
    if config is not None or changes:
        raise ConfigInvalid(
            "A run is resumed with the configuration that it started with; to change settings, start a new run."
        )


@contextmanager
def _threads_kept() -> Iterator[None]:
    """A simulation computes on one thread per client; the program around it goes on as it was."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
