"""`fedpeft local up`: provision, start, run, end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.api.configuration import configured
from fedpeft.api.progress import Progress
from fedpeft.api.result import Result, open_run
from fedpeft.clock import SystemClock
from fedpeft.data.formats import located
from fedpeft.errors import FedpeftError
from fedpeft.files import expect_folder
from fedpeft.terminal import counted, quoted

__all__ = ["LocalRun", "local_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """What a local federation left.

    Args:
        folder: everything of it.
        clients: its devices' names.
        result: the run.
    """

    folder: Path
    clients: tuple[str, ...]
    result: Result


def local_up(
    config: Path | None,
    *,
    overrides: Sequence[str] = (),
    out: Path,
    resume: Path | None,
    store: Path | None,
    screen: Progress,
) -> LocalRun:
    """Run a federation of processes from its file to its end.

    Args:
        config: a run.toml or a bundled scenario; None with ``resume``.
        overrides: ``key=value`` each.
        out: where its folder is made.
        resume: the folder of one that was ended.
        store: where base artifacts lie; None: the user's store.
        screen: told of everything.

    Raises:
        FedpeftError: what stopped it; every process is ended, and its folder stays.
    """
    from fedpeft_sim.local_federation import LocalFederation
    from fedpeft_sim.local_run import begin, follow, provision

    clock = SystemClock()
    begun = clock.monotonic_s()
    if resume is not None:
        federation = LocalFederation.reopen(resume)
        federation.start_coordinator()
        loaded, base = federation.config(), ""
    else:
        loaded, _ = configured(config or "", overrides)
        data = loaded.data.model_copy(update={"source": located(loaded.data.source)})
        expect_folder(out)
        screen.loading(f"config {config}; {counted(len(overrides), 'override')}; provisioning")
        loaded = loaded.model_copy(update={"directory": out, "data": data})
        population, federation, base = provision(loaded, screen, store=store)
        loaded = population.config
    with federation:
        try:
            begin(federation, screen)
            federation.submit(loaded, base)
            there = f"a coordinator and {len(federation.clients)} devices"
            took = clock.monotonic_s() - begun
            screen.note(f"{there} are up and have the run after {took:.1f} s; logs in {federation.path / 'logs'}")
            screen.clients(federation.trains(), loaded.rounds.count)
            run = follow(federation, screen)
        except (FedpeftError, KeyboardInterrupt):
            screen.hint(f"continue with:  {quoted('fedpeft', 'local', 'up', '--resume', federation.path)}")
            raise
    return LocalRun(folder=federation.path, clients=federation.clients, result=open_run(run))
